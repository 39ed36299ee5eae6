"""The part of motet that runs inside vLLM: takes weights in, and says of each Hugging Face name what the engine holds.

`Arrival` is mixed into vLLM's worker (`--worker-extension-cls`), so its methods answer `collective_rpc`. This file
needs the standard library and torch alone, because a server lives in an environment of its own that has no motet;
vllm_draw.py and vllm_fingerprints.py beside it, where they are, do two things faster. As a program it starts such a
server with everything that motet asks of one::

    python vllm_worker.py serve MODEL --port 8000
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEAD = "lm_head.weight"
MODULE = "motet_vllm"
"""Under this name a server imports a copy of this file."""
PARENT = "MOTET_DIES_WITH_PARENT"
BESIDE = ("_draw", "_fingerprints")
BATCH = 1 << 26
"""Bytes of tensors whose fingerprints are made at once: those on their way to an engine are held for it."""
_CHUNK = 1 << 24
"""Elements that are widened to 64 bits at a time."""
_BITS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


class Arrival:
    """Methods that vLLM's worker gains; `self` is that worker."""

    model_runner: Any
    vllm_config: Any
    motet_mark_: str = ""

    def motet_describe(self) -> dict[str, Any]:
        """What motet must know of an engine before it trusts its numbers. From then on all requests of a step are drawn
        at once, where this vLLM is built so; "draws" says why not, or nothing."""
        config = self.vllm_config
        model = config.model_config
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "context": int(model.max_model_len),
            "device": str(config.device_config.device_type),
            "shards": int(config.parallel_config.world_size),
            "quantization": str(model.quantization) if model.quantization else "",
            "mark": self.motet_mark_,
            "draws": draw_at_once(),
        }

    def motet_mark(self, mark: str) -> None:
        """Whose weights these are, and which version: a server that was started anew has forgotten it."""
        self.motet_mark_ = mark

    def motet_load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """New weights by Hugging Face name, in place: memory that CUDA graphs have recorded stays where it is."""
        import torch

        model = self.model_runner.get_model()
        quantized = self.vllm_config.model_config.quantization is not None
        with torch.inference_mode():
            if quantized or any(parameter.numel() == 0 for parameter in model.parameters()):
                # weights packed for this processor's kernels: only vLLM's own reload knows how to pack new ones
                worker: Any = self
                worker.reload_weights(weights_iterator=weights)
                _pack_tied_head(model)
            else:
                model.load_weights(weights)

    def motet_load_folder(self, folder: str) -> None:
        """The same, from the *.safetensors files of a folder."""
        self.motet_load(read_folder(Path(folder)))

    def motet_fingerprints(self, shapes: Sequence[tuple[str, Sequence[int]]]) -> dict[str, str]:
        """Of each (name, shape), in checkpoint order, what the engine holds; a name is left out that cannot be found.
        Empty when the model is cut over several GPUs, whose shards are not put together here."""
        if self.vllm_config.parallel_config.world_size > 1:
            return {}
        return fingerprints(held(self.model_runner.get_model(), dict(shapes)))


def draw_at_once() -> str:
    try:
        module = _beside("_draw")
    except ImportError as error:
        return str(error)
    found: str = module.install()
    return found


def _beside(suffix: str) -> Any:
    """The module that lies beside this one, under whatever name this one was imported."""
    return import_module(f"{__name__.removesuffix('_worker')}{suffix}")


def read_folder(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                yield name, tensors.get_tensor(name)


def held(model: Any, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, the part of the engine's parameters that it became). vLLM fuses q, k and v, and gate and up,
    by stacking rows in a fixed order, and pads the vocabulary's rows."""
    parameters = dict(model.named_parameters())
    fused = {part: (whole, parts) for whole, parts in (getattr(model, "packed_modules_mapping", None) or {}).items()
             for part in parts}  # fmt: skip
    unpacked: dict[str, torch.Tensor] = {}  # one, that of the layer in turn
    for name, shape in shapes.items():
        home, first = name, 0
        if name == HEAD and name not in parameters and (head := _tied_head(model)) is not None:
            # what it computes with, which on a CPU is a packed copy of the table that it is tied to
            table = read_back(head, head.weight) if hasattr(head, "cpu_linear") else head.weight
            yield name, table.detach()[: shape[0]]
            continue
        if name not in parameters:
            segment = next((part for part in name.split(".") if part in fused), None)
            if segment is None:
                continue
            whole, parts = fused[segment]
            siblings = [name.replace(f".{segment}.", f".{part}.") for part in parts[: parts.index(segment)]]
            home = name.replace(f".{segment}.", f".{whole}.")
            if home not in parameters or any(sibling not in shapes for sibling in siblings):
                continue
            first = sum(shapes[sibling][0] for sibling in siblings)
        tensor = parameters[home].detach()
        if tensor.numel() == 0:
            if home not in unpacked:
                unpacked = {home: read_back(model.get_submodule(home.rpartition(".")[0]), tensor)}
            tensor = unpacked[home]
        part = tensor[first : first + shape[0]]
        if tuple(part.shape) == tuple(shape):
            yield name, part


def _tied_head(model: Any) -> Any:
    """The output layer, which `named_parameters` leaves out where its weight is the embedding's."""
    return getattr(model, HEAD.partition(".")[0], None)


def _pack_tied_head(model: Any) -> None:
    """vLLM's reload fills the table that a tied head shares, and leaves the copy that was packed for the head: it would
    go on with the old weights."""
    head = _tied_head(model)
    if head is not None and hasattr(head, "cpu_linear") and head.weight.numel() > 0:
        head.quant_method.process_weights_after_loading(head)


def read_back(layer: Any, like: torch.Tensor) -> torch.Tensor:
    """The [out, in] weights of a linear layer whose kernel has packed them away: its answer to the unit vectors. Every
    sum in it has one term that is not zero, so it is exact."""
    import torch

    with torch.inference_mode():
        width = like.shape[1] if like.numel() else layer.input_size_per_partition
        unit = torch.eye(width, dtype=like.dtype, device=like.device)
        answer: torch.Tensor = layer.quant_method.apply(layer, unit, None)
        return answer.T.contiguous()


class Fingerprints:
    """Of tensors by name. On a GPU they are made many at once, so tensors are held until BATCH bytes are there."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._waiting: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._names.append(name)
        if _at_once(tensor.device.type) is None:
            self._make()
            self._sums.append(fingerprint(tensor)[None])
            return
        if self._waiting and (self._waiting[0].device, self._waiting[0].dtype) != (tensor.device, tensor.dtype):
            self._make()
        self._waiting.append(tensor)
        if sum(waiting.nbytes for waiting in self._waiting) >= BATCH:
            self._make()

    def words(self) -> dict[str, str]:
        """Fetched from the device all at once."""
        import torch

        if not self._names:
            return {}
        self._make()
        rows = torch.cat(self._sums).cpu().tolist()
        return {n: "".join(f"{value % 2**64:016x}" for value in row) for n, row in zip(self._names, rows, strict=True)}

    def _make(self) -> None:
        if self._waiting:
            together = _at_once(self._waiting[0].device.type)
            assert together is not None
            self._sums.append(together(self._waiting))
            self._waiting = []


def fingerprints(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """One fingerprint a name."""
    found = Fingerprints()
    for name, tensor in tensors:
        found.add(name, tensor)
    return found.words()


@cache
def _at_once(device: str) -> Callable[[Sequence[torch.Tensor]], torch.Tensor] | None:
    """`fingerprint` of many tensors, [N, 2]; None on a CPU, and where the kernel cannot be made or says otherwise."""
    import torch

    if device == "cpu":
        return None
    trial = torch.arange(-3000, 3000, dtype=torch.int16, device=device).view(3, 2000)
    try:
        found: Callable[[Sequence[torch.Tensor]], torch.Tensor] = _beside("_fingerprints").at_once
        return found if found([trial])[0].equal(fingerprint(trial)) else None
    except Exception:  # whatever its compiler raises, the slow way is there
        return None


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """Two 64-bit numbers of a tensor's bits, on its device: the sums of its rows, and of its columns, each weighted by
    a number of its place. An element that changes, moves or is missing changes them; so does another dtype."""
    import torch

    bits = tensor.detach().contiguous().view(getattr(torch, _BITS[tensor.element_size()]))
    bits = bits.reshape(-1, bits.shape[-1]) if bits.ndim > 1 else bits.reshape(1, -1)
    height, width = bits.shape
    places = _places(max(height, width), bits.device)
    rows, columns = sums_of_rows_and_columns(bits)
    return torch.stack(((rows * places[:height]).sum(), (columns * places[:width]).sum()))


def sums_of_rows_and_columns(bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of integers [height, width], in 64 bits. A GPU widens as it reads; a CPU would make a wide copy of all of it, and
    gets a part at a time."""
    import torch

    if bits.is_cuda:
        return bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)
    height, width = bits.shape
    rows, columns = torch.zeros(height, dtype=torch.int64), torch.zeros(width, dtype=torch.int64)
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, height, step):
        wide = bits[start : start + step].long()
        rows[start : start + step] = wide.sum(1)
        columns += wide.sum(0)
    return rows, columns


_PLACES: dict[torch.device, torch.Tensor] = {}


def _places(count: int, device: torch.device) -> torch.Tensor:
    """One 64-bit number for each index (the finaliser of splitmix64, cut short)."""
    import torch

    known = _PLACES.get(device)
    if known is None or known.numel() < count:
        with torch.inference_mode(False):
            index = torch.arange(1, count + 1, dtype=torch.int64, device=device)
            index = index * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
            index = (index ^ (index >> 30)) * -4658895280553007687
            known = _PLACES[device] = index ^ (index >> 27)
    return known


def main(arguments: Sequence[str]) -> None:
    """`serve MODEL ...` becomes vLLM's server with these arguments, and those that motet needs where not given."""
    if len(arguments) < 2 or arguments[0] != "serve":
        sys.exit(f"usage: {Path(__file__).name} serve MODEL [arguments of vllm serve]")
    arguments = arguments[1:]
    folder = Path(tempfile.mkdtemp(prefix="motet-vllm-"))
    shutil.copy(__file__, folder / f"{MODULE}.py")
    for suffix in BESIDE:
        beside = Path(__file__).with_name(f"vllm{suffix}.py")
        if beside.exists():
            shutil.copy(beside, folder / f"{MODULE}{suffix}.py")
    wanted = {
        "--worker-extension-cls": f"{MODULE}.Arrival",
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
    }
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
    added = [word for option, value in wanted.items() if option not in given for word in (option, value)]
    python_path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": python_path, "VLLM_SERVER_DEV_MODE": "1"}
    # not `vllm serve`: that command asks for the version of a package named vllm, which a CPU build is not
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *arguments, *added]
    if os.environ.get(PARENT):
        status = _watched(command, environment)
        os._exit(status)  # a thread still reads standard input, on which an ordinary end would fall over
    os.execve(sys.executable, command, environment)


def _watched(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the server until it ends, or until standard input does: motet holds its other end, and a motet that was
    killed closes it. (PR_SET_PDEATHSIG would fire when the thread ends that started this.)"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole session; the server's own end ends this too
    server = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGTERM)
        time.sleep(10.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return server.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
