"""vLLM in servers over HTTP: one that motet starts and watches, or several that run already.

Every request is asked on its own, and belongs to one thread until its answer is whole. A server that dies in between is
started anew (or waited for, where it is another's), is given the weights of the current version again, and the requests
that it had not answered go back to the queue: none is lost, none counted twice.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from motet.base import signs
from motet.base.errors import UserError
from motet.base.places import check_python
from motet.base.recipe import Engine as Settings
from motet.base.recipe import Model
from motet.base.records import Completion
from motet.data.chat import ChatFormat
from motet.engine import vllm_process as process
from motet.engine.arrival import Ledger, compare
from motet.engine.protocol import Request, SamplingParams
from motet.engine.vllm import Vllm, Weights, neutral, refuse_unfit
from motet.engine.vllm_http import Server, Trouble
from motet.engine.vllm_process import Process
from motet.engine.vllm_transfer import Files, Ipc, Nccl
from motet.engine.vllm_worker import read_folder
from motet.model.load import device_of

log = logging.getLogger("motet")


class ServedVllm(Vllm):
    def __init__(self, path: str | Path, model: Model, chat: ChatFormat, settings: Settings) -> None:
        super().__init__(path, model, chat, settings)
        self._model = model
        self._identity = uuid.uuid4().hex
        """Marks the weights of this engine: a server that was started anew does not know them."""
        device = device_of(model).type
        self._way = settings.transfer if settings.transfer != "auto" else _way(settings, device)
        self._device = device
        self._folder = Path(tempfile.mkdtemp(prefix="motet-vllm-"))
        size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) if Path(path).is_dir() else 1 << 30
        self._files = Files(settings.transfer_folder, settings.bucket_mebibytes << 20, size)
        self._transport: Files | Ipc | Nccl = self._files
        self._files_lock = threading.Lock()
        self._loads = 0
        self.servers: list[Server] = []
        self._gpus: dict[str, tuple[int, ...]] = {}
        """By url, of servers that motet starts."""
        try:
            if settings.python:
                check_python(settings.python)
                places = process.places(settings)
                for port, gpus in zip(process.free_ports(len(places)), places, strict=True):
                    self.servers.append(Server(f"http://127.0.0.1:{port}", settings))
                    self._gpus[self.servers[-1].url] = gpus
                    self._launch(self.servers[-1])  # all load at the same time
                for server in self.servers:
                    server.wait(process.START_SECONDS)
            else:
                self.servers = [Server(url, settings) for url in settings.urls]
            self._transport = self._make_transport()
            abouts = [self._meet(server) for server in self.servers]
            self.context = min(about["context"] for about in abouts)
            if not settings.python:  # whatever was served before, it shall be this model
                self.restart_on(path)
        except BaseException:
            self.close()
            raise

    @property
    def mended(self) -> int:
        return sum(server.lives for server in self.servers)

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.servers = []
        self._transport.close()
        self._files.close()
        with contextlib.suppress(OSError):  # logs stay
            self._folder.rmdir()

    def _sample(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        work = _Work(requests, sampling)
        for server in self.servers:
            server.failures, server.gone = 0, False
            for _ in range(min(self.settings.batch_size, len(requests))):
                # daemons, not an executor's threads: those are joined when Python exits, and Ctrl-C would wait
                threading.Thread(target=self._serve, args=(server, work), name="motet-vllm", daemon=True).start()
        try:
            for _ in range(len(requests)):
                result = work.ended.get()
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            work.stop(len(self.servers) * self.settings.batch_size)

    def _serve(self, server: Server, work: _Work) -> None:
        """One thread: a request at a time, each answered, handed back, or ended in an error."""
        while not server.gone and (index := work.next()) is not None:
            life = server.lives
            try:
                body = {**neutral(work.sampling, work.requests[index], self._stops), "return_token_ids": True,
                        "prompt": list(work.requests[index].prompt_tokens), "skip_special_tokens": False}  # fmt: skip
                tokens, logprobs, finish = server.complete(body)
                completion = self._completion(tokens, logprobs, finish)
            except Trouble as trouble:
                work.waiting.put(index)
                try:
                    self._bring_back(server, life, str(trouble), work)
                except Exception as error:  # raised again in the caller's thread
                    work.ended.put(error)
                    return
            except Exception as error:
                work.ended.put(error)
                return
            else:
                server.failures = 0
                work.ended.put((index, completion))

    def _bring_back(self, server: Server, life: int, problem: str, work: _Work) -> None:
        """Of the threads that meet one trouble the first deals with it. Raises when no server is left."""
        with server.lock:
            if server.lives != life or server.gone or work.stopped.is_set():
                return
            server.failures += 1
            signs.give()
            cause = server.process.last_error() if server.process is not None else ""
            problem += f" (the last error in its log: {cause})" if cause else ""
            log.warning("%s: %s; unfinished requests will be asked again", server.url, problem)
            try:
                if server.failures > self.settings.retries:
                    raise UserError(
                        f"{server.url} failed {server.failures} times in a row; the last: {problem}. engine.retries "
                        "and engine.timeout_seconds allow for a slower or less steady one."
                    )
                if server.process is not None and (not server.healthy() or "Timeout" in problem):
                    server.process.stop()
                    self._start(server, work.stopped)
                else:
                    server.wait(self.settings.timeout_seconds, work.stopped)
                signs.give()
                self._catch_up(server)
            except (UserError, Trouble) as error:
                if work.stopped.is_set():
                    return
                if isinstance(error, Trouble):  # died again: the next request will say so
                    error = UserError(f"{server.url} died while it was brought back: {error}")
                server.gone = True
                if all(other.gone for other in self.servers):
                    raise error
                log.error("%s is given up, and the others take over its requests: %s", server.url, error)
            server.lives += 1

    def _catch_up(self, server: Server) -> None:
        """A server that has forgotten the current weights gets them once more, as files: it may be the only one."""
        mark = self._meet(server)["mark"]
        if not self._loads or mark == self._mark:
            return
        if self._again is None:
            raise UserError(
                f"{server.url} was started anew and its weights, version {self.version}, are no longer at hand. Start "
                "the run again: it goes on from its last checkpoint and keeps the rollouts that it has."
            )
        ledger = Ledger(self.dtype)
        with self._files_lock:
            self._hand_over(self._files, [server], ledger.through(self._again()))
            self._refuse_changed(ledger.expected())
        for found in self._held_by([server], ledger.shapes):
            compare(self._expected, found, ledger.shapes)

    def _start(self, server: Server, stopped: threading.Event | None) -> None:
        self._launch(server)
        server.wait(process.START_SECONDS, stopped)

    def _launch(self, server: Server) -> None:
        port, gpus = urlsplit(server.url).port, self._gpus[server.url]
        assert port is not None
        words = process.command(self.path, self._model, self.settings, port, self._device, self._way)
        name = "-".join(["server", *map(str, gpus)])
        environment = process.environment(self.settings, self._device, self._way, gpus)
        server.process = Process(words, self._folder / f"{name}.log", environment)

    def _meet(self, server: Server) -> dict[str, Any]:
        about = server.describe()
        refuse_unfit(about, server.url, self.dtype)
        return about

    def _make_transport(self) -> Files | Ipc | Nccl:
        size = self.settings.bucket_mebibytes << 20
        if self._way == "files":
            return self._files
        return Ipc(size) if self._way == "ipc" else Nccl(size, _own_address(self.servers))

    def _load(self, weights: Weights, version: int, again: Any) -> None:
        super()._load(weights, version, again)
        if self._way == "files":
            self._again = self._from_files

    def _from_files(self) -> Weights:
        assert self._files.last is not None
        return read_folder(self._files.last)

    def _transfer(self, weights: Weights) -> None:
        self._ensure_alive()
        self._loads += 1
        try:
            self._hand_over(self._transport, self.servers, weights)
        except Trouble as trouble:
            raise UserError(f"new weights could not be handed to a vLLM server: {trouble}") from trouble

    def _hand_over(self, transport: Files | Ipc | Nccl, servers: Sequence[Server], weights: Weights) -> None:
        transport.send(servers, weights)
        for server in servers:
            server.post("/reset_prefix_cache")
            server.call("motet_mark", self._mark)

    @property
    def _mark(self) -> str:
        return f"{self._identity}.{self._loads}"

    def _ensure_alive(self) -> None:
        """A server that died between two calls is brought back before it is given anything."""
        for server in self.servers:
            if server.process is not None and not server.healthy():
                log.warning("%s does not answer; it is started anew", server.url)
                server.process.stop()
                self._start(server, None)
                self._meet(server)
                server.lives += 1

    def _fingerprints(self, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, str]]:
        return self._held_by(self.servers, shapes)

    def _held_by(self, servers: Sequence[Server], shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, str]]:
        asked = [[name, list(shape)] for name, shape in shapes.items()]
        return [dict(found) for server in servers for found in server.call("motet_fingerprints", asked)]

    def _to_sleep(self, level: int) -> None:
        for server in self.servers:
            try:
                server.post("/sleep", query={"level": level})
            except Trouble as trouble:  # it died; whoever needs it next brings it back
                log.warning("%s: %s", server.url, trouble)

    def _rouse(self, *tags: str) -> None:
        self._ensure_alive()
        for server in self.servers:
            server.post("/wake_up", query={"tags": list(tags)})


class _Work:
    """The requests of one call: which wait, and what has come of the others."""

    def __init__(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        self.requests, self.sampling = requests, sampling
        self.waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[tuple[int, Completion] | Exception] = queue.SimpleQueue()
        self.stopped = threading.Event()
        # those of one prompt beside each other: its cache is shared
        for index in sorted(range(len(requests)), key=lambda i: requests[i].prompt_tokens):
            self.waiting.put(index)

    def next(self) -> int | None:
        index = self.waiting.get()
        return None if self.stopped.is_set() else index

    def stop(self, threads: int) -> None:
        self.stopped.set()
        for _ in range(threads):
            self.waiting.put(None)


def _way(settings: Settings, device: str) -> str:
    if not settings.python or device != "cuda":
        return "files"
    if settings.apart:
        return "nccl" if find_spec("vllm") else "files"
    return "ipc" if set(settings.gpus) <= {0} else "files"  # IPC is within a GPU, NCCL has one process on each


def _own_address(servers: Sequence[Server]) -> str:
    """The address under which the servers reach this machine: that of the socket that reaches the first of them."""
    import socket

    place = urlsplit(servers[0].url)
    with socket.create_connection((place.hostname or "127.0.0.1", place.port or 80), timeout=20.0) as connection:
        address: str = connection.getsockname()[0]
        return address
