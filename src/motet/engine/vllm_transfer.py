"""How new weights reach a vLLM server: as files, or by vLLM's own weight transfer (CUDA IPC on one GPU, NCCL across).

All three take an iterator of (Hugging Face name, tensor in the engine's dtype) and never hold more than a bucket of it.
"""

from __future__ import annotations

import base64
import errno
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from motet.base.errors import UserError
from motet.engine.vllm_http import Server
from motet.engine.vllm_process import free_port

Weights = Iterable[tuple[str, torch.Tensor]]
SHARED_MEMORY = Path("/dev/shm")


def buckets(weights: Weights, most_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """In order, each bucket at most so large; a larger tensor is a bucket of its own."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > most_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


class Files:
    """safetensors files in a folder that the servers see too. The last version stays there until the next one has
    arrived, for a server that has to be brought back."""

    def __init__(self, folder: str | None, most_bytes: int, expected_bytes: int) -> None:
        if folder is None:
            room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 3 * expected_bytes
            self._root = Path(tempfile.mkdtemp(prefix="motet-weights-", dir=SHARED_MEMORY if room else None))
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="motet-weights-", dir=Path(folder).resolve()))
        self._most_bytes = most_bytes
        self._count = 0
        self.last: Path | None = None

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        from safetensors.torch import save_file

        self._count += 1
        folder = self._root / str(self._count)
        folder.mkdir()
        try:
            for number, bucket in enumerate(buckets(weights, self._most_bytes)):
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bucket}
                save_file(tensors, str(folder / f"{number:05d}.safetensors"))
        except Exception as error:  # what safetensors raises for a full disk is no OSError
            shutil.rmtree(folder, ignore_errors=True)
            if f"os error {errno.ENOSPC}" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
                raise UserError(
                    f"no room in {self._root} for the weights on their way to vLLM; set engine.transfer_folder to a "
                    "folder on a larger disk"
                ) from error
            raise
        with ThreadPoolExecutor(len(servers)) as threads:
            list(threads.map(lambda server: server.call("motet_load_folder", str(folder)), servers))
        if self.last is not None:
            shutil.rmtree(self.last)
        self.last = folder

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


class Ipc:
    """vLLM's CUDA IPC transfer: the server maps the learner's memory on the same GPU and copies from there."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        _all(servers, "/init_weight_transfer_engine", {"init_info": {}})
        _all(servers, "/start_weight_update", {})
        for bucket in buckets(weights, self._most_bytes):
            tensors = _on_gpu(bucket, "ipc")
            handles = []
            for _, tensor in tensors:
                card = str(torch.cuda.get_device_properties(tensor.device).uuid)
                handles.append({card: reduce_tensor(tensor)[1]})  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # the server reads this memory on a stream of its own
            pickled = base64.b64encode(pickle.dumps(handles)).decode()
            _all(servers, "/update_weights", {"update_info": {**_described(tensors), "ipc_handles_pickled": pickled}})
        _all(servers, "/finish_weight_update", {})
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def close(self) -> None: ...


class Nccl:
    """vLLM's NCCL transfer: the learner broadcasts, as rank 0 of a group with all workers of all servers.

    Needs vLLM's communicator in this process too: both ends must speak the same one."""

    def __init__(self, most_bytes: int, address: str) -> None:
        self._most_bytes = most_bytes
        self._address = address
        self._group: Any = None
        self._members: list[tuple[str, int]] = []

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        members = [(server.url, server.lives) for server in servers]
        if members != self._members:  # a server that was started anew has left the group
            self.close()
            self._group, self._members = self._join(servers), members
        try:
            self._broadcast(servers, weights)
        except BaseException:
            self.close()  # what waits on this GPU for a receiver that is gone would hold up all that comes after it
            raise

    def _broadcast(self, servers: Sequence[Server], weights: Weights) -> None:
        _all(servers, "/start_weight_update", {})
        with ThreadPoolExecutor(1) as threads:
            for bucket in buckets(weights, self._most_bytes):
                tensors = _on_gpu(bucket, "nccl")
                receiving = threads.submit(_all, servers, "/update_weights", {"update_info": _described(tensors)})
                for _, tensor in tensors:
                    if receiving.done():  # before all was sent: refused
                        break
                    self._group.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
                receiving.result()
        torch.cuda.synchronize()
        _all(servers, "/finish_weight_update", {})

    def _join(self, servers: Sequence[Server]) -> Any:
        try:
            from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
            from vllm.distributed.utils import StatelessProcessGroup
        except ImportError:
            raise UserError(
                'engine.transfer = "nccl" needs vLLM importable beside motet as well, for its communicator; install it '
                'there, or use transfer = "files" with a transfer_folder that the servers see'
            ) from None
        sizes = [int(server.get("/get_world_size")["world_size"]) for server in servers]
        world, port = 1 + sum(sizes), free_port()
        rendezvous = {"master_address": self._address, "master_port": port, "world_size": world}
        with ThreadPoolExecutor(len(servers)) as threads:
            joining = [
                threads.submit(
                    server.post,
                    "/init_weight_transfer_engine",
                    {"init_info": {**rendezvous, "rank_offset": 1 + sum(sizes[:place])}},
                )
                for place, server in enumerate(servers)
            ]
            group = StatelessProcessGroup.create(host=self._address, port=port, rank=0, world_size=world)
            communicator = PyNcclCommunicator(group, device=torch.cuda.current_device())
            for one in joining:
                one.result()
        return communicator

    def close(self) -> None:
        group, self._group, self._members = self._group, None, []
        if hasattr(group, "destroy"):  # ends what it still has on the GPU
            group.destroy()


def _on_gpu(bucket: Sequence[tuple[str, torch.Tensor]], way: str) -> list[tuple[str, torch.Tensor]]:
    """The learner's are there; those of a folder, which an engine begins a stage with, are not yet."""
    if not torch.cuda.is_available():
        for name, tensor in bucket:
            if not tensor.is_cuda:
                raise UserError(f'engine.transfer = "{way}", but {name} lies on {tensor.device}; use "files"')
    return [(name, (tensor if tensor.is_cuda else tensor.cuda()).contiguous()) for name, tensor in bucket]


def _described(tensors: Sequence[tuple[str, torch.Tensor]]) -> dict[str, Any]:
    return {
        "names": [name for name, _ in tensors],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        "shapes": [list(tensor.shape) for _, tensor in tensors],
    }


def _all(servers: Sequence[Server], path: str, body: dict[str, Any]) -> None:
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(lambda server: server.post(path, body), servers))
