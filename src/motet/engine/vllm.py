"""vLLM behind motet's protocol, three ways with one adapter: in this process, in a server that motet starts and
watches, and in servers that run already.

`Vllm` is what the three share: which numbers are asked for, the order of waking, loading, proving and sleeping. How a
request reaches the engine and how weights do is in `vllm_local.py` and `vllm_server.py`.

Log-probabilities are those of the distribution that was sampled from (`logprobs_mode = processed_logprobs`), so they
compare with the learner's at the sampling temperature. Top-k, min-p and penalties, which a model's own generation
settings would switch on, are switched off in every request; with a nucleus (top_p < 1: teachers and evaluation) no
log-probabilities are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from motet.base.errors import UserError
from motet.base.recipe import Engine as Settings
from motet.base.recipe import Model
from motet.base.records import Completion, Stop
from motet.base.run import log
from motet.data.chat import ChatFormat
from motet.engine.again import Remembered
from motet.engine.arrival import Ledger, compare
from motet.engine.protocol import Request, SamplingParams
from motet.engine.vllm_worker import read_folder
from motet.model.load import device_of
from motet.model.rope import positions_of, rotary_of

if TYPE_CHECKING:
    from motet.engine.vllm_local import LocalVllm
    from motet.engine.vllm_server import ServedVllm

Weights = Iterable[tuple[str, torch.Tensor]]


def make(path: str | Path, model: Model, chat: ChatFormat, settings: Settings) -> LocalVllm | ServedVllm:
    """The engine that `[engine]` asks for, on the weights of `path`: a Hugging Face folder or hub id."""
    if settings.sleep and device_of(model).type == "cpu":
        raise UserError(f"engine.sleep = {settings.sleep} gives GPU memory back, and this run is on a CPU; take it out")
    if settings.python or settings.urls:
        from motet.engine.vllm_server import ServedVllm

        return ServedVllm(path, model, chat, settings)
    from motet.engine.vllm_local import LocalVllm

    return LocalVllm(path, model, chat, settings)


class Vllm(ABC):
    """Weights have a version and a proof; memory is asleep or awake. `close` gives everything back."""

    def __init__(self, path: str | Path, model: Model, chat: ChatFormat, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.context = settings.context or 0
        """Longest prompt and completion together; known once the engine has described itself."""
        self.version = 0
        self._chat = chat
        self._stops = sorted(chat.stop_tokens)
        self._asleep = 0
        """The level of sleep; 0 is awake."""
        self._weights_awake = True
        self._again: Callable[[], Weights] | None = None
        """The weights that were loaded last, once more; None where they cannot be had again."""
        self._expected: dict[str, str] = {}

    @property
    def mended(self) -> int:
        """As `protocol.Mended` says; vLLM in this process fails with it."""
        return 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        if not requests:
            return
        self._refuse_too_long(requests, sampling)
        self._wake()
        answered = [False] * len(requests)
        try:
            for index, completion in self._sample(requests, sampling):
                if answered[index]:  # asked again though its first answer was still on its way
                    continue
                answered[index] = True
                yield index, completion
            assert all(answered), "an engine ended before it had answered every request"
        finally:
            self.rest()

    def load(self, weights: Weights, version: int) -> None:
        """Raises UserError when what the engine then holds is not what was sent."""
        kept = Remembered()
        self._load(kept.through(weights), version, None)
        if self._again is None and kept.lives:
            self._again = kept.again

    def restart_on(self, path: str | Path) -> None:
        """The weights of another folder, as a new engine on it would have them: version 0."""
        folder = folder_of(path)
        self._load(read_folder(folder), 0, lambda: read_folder(folder))
        self.path = path

    def rest(self) -> None:
        """Gives memory back until it is needed, where sleep mode is on."""
        if self.settings.sleep:
            self._sleep_now()

    @abstractmethod
    def close(self) -> None:
        """Gives everything back, for good."""

    @abstractmethod
    def _sample(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        """Each completion as it ends; an index may come twice if the answers are equal."""

    @abstractmethod
    def _transfer(self, weights: Weights) -> None:
        """Hands all tensors to the engine, in its dtype, and drops what it has cached of prompts."""

    @abstractmethod
    def _fingerprints(self, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, str]]:
        """Of each engine behind this one, what it holds by name."""

    @abstractmethod
    def _to_sleep(self, level: int) -> None: ...

    @abstractmethod
    def _rouse(self, *tags: str) -> None:
        """Takes memory back for "weights" or "kv_cache"; for neither: for both."""

    def _load(self, weights: Weights, version: int, again: Callable[[], Weights] | None) -> None:
        if not self._weights_awake:
            self._rouse("weights")
            self._weights_awake = True
        self._again = None
        self._put(weights)
        self.version, self._again = version, again

    def _put(self, weights: Weights) -> None:
        ledger = Ledger(self.dtype)
        self._transfer(ledger.through(weights))
        self._expected = ledger.expected()
        for found in self._fingerprints(ledger.shapes):
            missing = compare(self._expected, found, ledger.shapes)
            if missing and self.version == 0:
                log.warning(
                    "vLLM does not hold %d of %d tensors under a name that motet knows (%s, ...): their arrival is "
                    "proven by log-probabilities alone", len(missing), len(self._expected), missing[0]
                )  # fmt: skip

    def _sleep_now(self) -> None:
        """Level 2 only where the weights can be had again."""
        if not self._asleep:
            self._asleep = min(self.settings.sleep, 2 if self._again is not None else 1)
            self._to_sleep(self._asleep)
            self._weights_awake = False

    def _wake(self) -> None:
        if not self._asleep:
            return
        if self._weights_awake:  # they came while it slept
            self._rouse("kv_cache")
        elif self._asleep == 2 and self._again is not None:
            loaded = self._expected
            self._rouse("weights")
            self._put(self._again())
            now, self._expected = self._expected, loaded
            self._refuse_changed(now)
            self._rouse("kv_cache")
        else:
            self._rouse()
        self._asleep, self._weights_awake = 0, True

    def _refuse_changed(self, now: Mapping[str, str]) -> None:
        changed = [name for name, value in self._expected.items() if now.get(name) != value]
        if changed:
            raise UserError(
                f"the learner has changed {changed[0]} since it loaded version {self.version} into the engine, which "
                "has to take those weights again and has no copy of its own: load before sampling"
            )

    def _refuse_too_long(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        prompt = max(len(request.prompt_tokens) for request in requests)
        if self.context and prompt + sampling.max_tokens > self.context:
            raise UserError(
                f"a prompt of {prompt} tokens and sampling.max_tokens = {sampling.max_tokens} are "
                f"{prompt + sampling.max_tokens} positions, over the engine's {self.context}; lower "
                "sampling.max_tokens, or raise engine.context up to what the model has"
            )

    def _completion(self, tokens: Sequence[int], logprobs: Sequence[float], finish: str | None) -> Completion:
        """A stop token that vLLM leaves out of the tokens of a stopped completion would be trained on as missing, so
        that is refused as a broken engine."""
        ended = bool(tokens) and tokens[-1] in self._chat.stop_tokens
        stop: Stop = "end" if ended else "length"
        if finish not in ("stop", "length") or (finish == "stop") != ended:
            raise UserError(f"vLLM ended a completion of {len(tokens)} tokens with {finish!r}, which motet cannot read")
        return Completion(self._chat.decode(tokens), tuple(tokens), tuple(logprobs), stop, self.version)


def neutral(sampling: SamplingParams, request: Request, stops: Sequence[int]) -> dict[str, Any]:
    """The sampling parameters of one request, under the names that vLLM's Python and HTTP interfaces share. Nothing is
    left to the defaults of a model or of a server."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "seed": request.seed % 2**63,
        "stop_token_ids": list(stops),
        "ignore_eos": True,  # the chat format's stop tokens, the model's own among them, are all that ends a completion
        "logprobs": 0 if sampling.top_p == 1.0 else None,  # 0: of the sampled token, and no other
    }


def whole_prompts(path: str | Path, settings: Settings) -> dict[str, int]:
    """On a CPU, vLLM cannot take back the random number that a prompt cut in two draws for nothing (its generators have
    no offset there, and it ends with an error): prompts are computed whole, in a step that holds the longest."""
    return {"max_num_batched_tokens": max(8192, settings.context or positions_of(path) or 0)}


class Lender:
    """Keeps an engine from one stage to the next: starting it takes longer than many stages. `lend` gives it with the
    weights of a folder; the `close` of what it lends gives memory back where sleep mode allows that or the memory is
    not this GPU's. Elsewhere the engine keeps its memory until the next is lent, or until `give_back`."""

    def __init__(self) -> None:
        self._engines: dict[str, Vllm] = {}
        """By their settings as text: those hold tables, which have no hash."""
        self._rotary: dict[str, Any] = {}
        """What positions the model has that an engine was made on: it computes with these for good."""
        self._idle: set[str] = set()
        """Those that nobody uses and that keep memory all the same."""

    def lend(self, path: str | Path, model: Model, chat: ChatFormat, settings: Settings) -> Lent:
        key = settings.model_dump_json()
        # `model`: whatever `path` is, it is the same in every call
        rotary = None if settings.urls or settings.model else rotary_of(path)
        if self._rotary.get(key, rotary) != rotary:
            self._give_up(key)
        self.give_back(settings)  # another's memory, before this one is made or wakes
        engine = self._engines.get(key)
        if engine is None:
            engine = self._engines[key] = make(path, model, chat, settings)
            self._rotary[key] = rotary
        elif (str(path), 0) != (str(engine.path), engine.version):
            engine.restart_on(path)
        self._idle.discard(key)
        stays = bool(settings.sleep or settings.urls or settings.apart) or device_of(model).type == "cpu"
        return Lent(engine, engine.rest if stays else lambda: self._idle.add(key))

    def give_back(self, but: Settings | None = None) -> None:
        """Ends the engines that nobody uses and that keep memory, but for one with these settings."""
        for key in self._idle - {but.model_dump_json() if but is not None else ""}:
            self._give_up(key)

    def close(self) -> None:
        for key in list(self._engines):
            self._give_up(key)

    def _give_up(self, key: str) -> None:
        self._idle.discard(key)
        self._rotary.pop(key, None)
        engine = self._engines.pop(key, None)
        if engine is not None:
            engine.close()


class Lent:
    """An engine of a Lender's."""

    def __init__(self, engine: Vllm, give_back: Callable[[], None]) -> None:
        self.engine = engine
        self._give_back = give_back

    @property
    def version(self) -> int:
        return self.engine.version

    @property
    def mended(self) -> int:
        return self.engine.mended

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        return self.engine.generate(requests, sampling)

    def load(self, weights: Weights, version: int) -> None:
        self.engine.load(weights, version)

    def close(self) -> None:
        self._give_back()


def folder_of(path: str | Path) -> Path:
    """The folder of a model; a hub id is looked up in the local cache, and fetched where it is not in it."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json"]))


def refuse_unfit(about: Mapping[str, Any], where: str, dtype: torch.dtype) -> None:
    """Raises UserError for an engine whose log-probabilities or weights would not be comparable with the learner's."""
    wanted = {"logprobs_mode": "processed_logprobs", "dtype": str(dtype).removeprefix("torch."), "quantization": ""}
    advice = {
        "logprobs_mode": "start it with --logprobs-mode processed_logprobs",
        "dtype": f"start it with --dtype {wanted['dtype']}, or set model.dtype",
        "quantization": "start it on the unquantized model",
    }
    for name, value in wanted.items():
        given = str(about[name]).rpartition(".")[2].lower()
        if given != value:
            raise UserError(f"{where}: its {name} is {given!r}, and RL needs {value!r}: {advice[name]}")
