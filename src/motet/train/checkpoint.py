"""Checkpoints: STAGE/checkpoints/step-000050/, by torch.distributed.checkpoint, the newest two kept.

Each process writes its own part, and any number of processes reads it back. With a GPU or several processes a thread
writes while training goes on. A folder has its name only when it is whole: a kill during a save costs that save alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from motet.base.errors import UserError
from motet.train.learner import Learner

KEPT = 2


class Checkpoints:
    """Those of one stage; at most one is being written at a time."""

    def __init__(self, folder: Path, learner: Learner) -> None:
        self.folder = folder
        self._learner = learner
        self._pending: Future[None] | None = None
        self.pinned: int | None = None
        """The checkpoint of this step is kept, however old."""

    def steps(self) -> list[int]:
        """Of which steps there is a checkpoint."""
        return [_step_of(folder) for folder in _steps(self.folder)]

    def save(self, step: int) -> None:
        """`step`: how many steps of the stage are done. What could not be written raises here, or in the next call."""
        self.wait()
        temporary = self.folder / f"step-{step:06d}.tmp"
        world = self._learner.world
        world.first(lambda: _empty(temporary))
        state = {"step": torch.tensor(step), **self._learner.state()}
        writer = dcp.FileSystemWriter(temporary)
        if world.files is None and self._learner.device.type == "cpu":
            _quietly(lambda: dcp.save(state, storage_writer=writer, no_dist=True))
            _publish(temporary, self.folder, self.pinned)
            return
        done = _behind(state, writer, world.files, self._learner.device.type)
        pending: Future[None] = Future()
        self._pending = pending
        pinned = self.pinned
        done.add_done_callback(lambda saved: _settle(saved, pending, world.rank, temporary, self.folder, pinned))

    def wait(self) -> None:
        """Until what is being written is whole."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self) -> int:
        """Loads the newest checkpoint into the learner. Returns the number of steps done; 0 where there is none."""
        world = self._learner.world
        newest = world.first(lambda: next(reversed(_steps(self.folder)), None))
        if newest is None:
            return 0
        state = {"step": torch.tensor(0), **self._learner.state()}
        held = world.first(lambda: _described(newest))
        wrong = _differences(held, state)
        if wrong:
            raise UserError(
                f"{newest}: a checkpoint of another model ({wrong}). Remove {self.folder} to start the stage afresh."
            )
        state = {key: value for key, value in state.items() if key in held or not key.startswith("optimizer/")}
        for key, (dtype, shape) in held.items():
            if key not in state:
                state[key] = self._learner.blank(key, dtype, shape)
        try:
            reader = dcp.FileSystemReader(newest)
            _quietly(
                lambda: dcp.load(state, storage_reader=reader, process_group=world.files, no_dist=world.files is None)
            )
        except Exception as error:  # whatever unpickling makes of bytes that are cut short
            raise UserError(_damaged(newest, error)) from error
        self._learner.load_state(state)
        return int(state["step"])

    def remove(self) -> None:
        self.wait()
        self._learner.world.first(lambda: remove(self.folder))


def remove(folder: Path) -> None:
    """A finished stage keeps its exported model, not its checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _behind(
    state: dict[str, Any], writer: dcp.FileSystemWriter, group: dist.ProcessGroup | None, kind: str
) -> Future[Any]:
    """Copies what is on a device of this `kind` to the host now, writes in a thread; `group` is of all processes, None
    where there is one.

    torch's own `async_save` does both, but asks even a process on its own for a group with a CPU backend, once anything
    in it, an engine say, has started torch.distributed with another; and its thread has the node's first GPU for its
    current one, where each process then makes a context, half a gigabyte, to wait for a stream that nothing is on.
    """
    own = {key: value for key, value in state.items() if value.device.type == kind}
    held = {**state, **_quietly(lambda: DefaultStager(StagingOptions(False, False, False, False)).stage(own))}
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def write() -> None:
        if device is not None:
            torch.cuda.set_device(device)  # of this thread
        _quietly(lambda: dcp.save(held, storage_writer=writer, process_group=group, no_dist=group is None))

    return _thread.submit(write)


_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _settle(
    saved: Future[Any], pending: Future[None], rank: int, temporary: Path, folder: Path, pinned: int | None
) -> None:
    """In the writing thread. The first process is told last, when all parts are written: it gives the name."""
    try:
        error = saved.exception()
        if error is not None:
            raise _cause(error)
        if rank == 0:
            _publish(temporary, folder, pinned)
    except BaseException as error:
        pending.set_exception(error)
    else:
        pending.set_result(None)


def _publish(temporary: Path, folder: Path, pinned: int | None) -> None:
    target = temporary.with_suffix("")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in _steps(folder)[:-KEPT]:
        if _step_of(old) != pinned:
            shutil.rmtree(old)


def _described(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    try:
        held = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling makes of bytes that are cut short
        raise UserError(_damaged(folder, error)) from error
    return {
        key: (item.properties.dtype, tuple(item.size))
        for key, item in held.items()
        if isinstance(item, TensorStorageMetadata)
    }


def _differences(held: dict[str, tuple[torch.dtype, tuple[int, ...]]], state: dict[str, torch.Tensor]) -> str:
    """The first weight that checkpoint and learner do not share, in words; empty where they agree."""
    for key, value in state.items():
        if key.startswith("weights/"):
            if key not in held:
                return f"{key.removeprefix('weights/')} is missing from it"
            if held[key][1] != tuple(value.shape):
                return f"{key.removeprefix('weights/')} is of shape {held[key][1]} there and {tuple(value.shape)} here"
    more = [key for key in held if key.startswith("weights/") and key not in state]
    return f"{more[0].removeprefix('weights/')} is not in the model" if more else ""


def _damaged(folder: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    older = [step for step in _steps(folder.parent) if step != folder]
    then = f"{older[-1].name} is used then" if older else "the stage begins afresh then, there is none before it"
    return f"{folder}: the checkpoint is damaged ({reason}). Remove this folder: {then}."


def _quietly(function: Callable[[], Any]) -> Any:
    """Without torch's warning that a single process is a single process. An error of the disk is raised as itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        try:
            return function()
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """Behind what torch raised, where there is one, the OSError (a full disk, say) or the interrupt."""
    seen: list[BaseException] = [error]
    for found in seen:
        if isinstance(found, (OSError, KeyboardInterrupt)):
            return found
        inside = [found.__cause__, found.__context__]
        inside += [item[0] for item in getattr(found, "failures", {}).values()]
        seen += [one for one in inside if one is not None and one not in seen]
    return error if isinstance(error, Exception) else RuntimeError(str(error).strip())


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and not p.name.endswith(".tmp"))
