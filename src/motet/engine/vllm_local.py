"""vLLM in this process: colocated with the learner on one device, memory given back between phases.

Its step loop is driven here, so a completion is handed on in the step in which it ends. Several samples of one prompt
are requests of their own, each with its seed; vLLM's prefix cache computes their prompt once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from motet.base import signs
from motet.base.errors import UserError
from motet.base.recipe import Engine as Settings
from motet.base.recipe import Model
from motet.base.records import Completion
from motet.base.run import log
from motet.data.chat import ChatFormat
from motet.engine.lent_memory import LentMemory
from motet.engine.protocol import Request, SamplingParams
from motet.engine.vllm import Vllm, Weights, neutral, refuse_unfit, whole_prompts
from motet.engine.vllm_held import holding
from motet.model.load import device_of

EXTENSION = "motet.engine.vllm_worker.Arrival"
FIRST_NAPS = 3
"""In the steps before them the learner is compiled: some 10^5 objects that live as long as the process."""


class LocalVllm(Vllm):
    """One engine a process: vLLM's allocator serves no second one beside it."""

    def __init__(self, path: str | Path, model: Model, chat: ChatFormat, settings: Settings) -> None:
        if find_spec("vllm") is None:
            raise UserError(
                'engine.kind = "vllm": vLLM is not installed beside motet. Make an environment for it (make vllm) and '
                'name its Python: engine.python = ".venv-vllm/bin/python".'
            )
        super().__init__(path, model, chat, settings)
        prepare_process()
        from vllm import LLM

        self._naps, self._memory = 0, LentMemory()
        LentMemory().give()  # what the stage before has left
        self._llm: Any = LLM(**arguments(path, model, settings))
        self._engine: Any = self._llm.llm_engine
        (about,) = self._llm.collective_rpc("motet_describe")
        refuse_unfit(about, "vLLM in this process", self.dtype)
        if about["draws"] and about["device"] == "cuda":
            log.info("vLLM draws for one request after the other: %s", about["draws"])
        self.context = about["context"]
        self._asked = 0

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._asleep:  # its allocator cannot free what is unmapped
            self._rouse(*(("kv_cache",) if self._weights_awake else ()))
            self._asleep, self._weights_awake = 0, True
        self._engine.engine_core.shutdown()
        self._llm = self._engine = self._again = None
        cleanup_dist_env_and_memory()

    def _sample(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        from vllm import SamplingParams as Parameters
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        # the plainest record of log-probabilities that vLLM has, should it not be held back
        kind = {"detokenize": False, "flat_logprobs": True, "output_kind": RequestOutputKind.FINAL_ONLY}
        waiting: dict[str, int] = {}
        with holding(self._engine):
            # those of one prompt beside each other: the first computes it, the others find it in the cache
            for index in sorted(range(len(requests)), key=lambda i: requests[i].prompt_tokens):
                self._asked += 1
                waiting[str(self._asked)] = index
                prompt = tokens_input(list(requests[index].prompt_tokens))
                parameters = Parameters(**neutral(sampling, requests[index], self._stops), **kind)
                self._engine.add_request(str(self._asked), prompt, parameters)
            try:
                while waiting:
                    signs.give()
                    for output in self._engine.step():
                        if output.finished:
                            answer = output.outputs[0]
                            yield (
                                waiting.pop(output.request_id),
                                self._completion(answer.token_ids, told(answer.logprobs), answer.finish_reason),
                            )
            finally:
                if waiting:  # whoever asked has gone: nothing may go on being sampled
                    self._engine.abort_request(list(waiting))
                    while self._engine.has_unfinished_requests():
                        self._engine.step()

    def _transfer(self, weights: Weights) -> None:
        self._llm.collective_rpc("motet_load", args=(weights,))
        self._llm.reset_prefix_cache()

    def _fingerprints(self, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self._llm.collective_rpc("motet_fingerprints", args=(list(shapes.items()),))
        return found

    def _to_sleep(self, level: int) -> None:
        if self._naps < FIRST_NAPS:  # vLLM collects garbage at each: it need not look through what stays for good
            self._naps += 1
            gc.collect()
            gc.freeze()
        self._llm.sleep(level)
        self._memory.take_back()

    def _rouse(self, *tags: str) -> None:
        self._memory.give()
        self._llm.wake_up(list(tags) or None)


def told(logprobs: Any) -> list[float]:
    """Of each sampled token: held back as a list, or vLLM's record with the sampled token's first at each place."""
    if logprobs is None or isinstance(logprobs, list):
        return logprobs or []
    return [logprobs.logprobs[first] for first in logprobs.start_indices]


def arguments(path: str | Path, model: Model, settings: Settings) -> dict[str, Any]:
    """What `vllm.LLM` is made with."""
    on_cpu = device_of(model).type == "cpu"
    return {
        "model": str(path),
        "dtype": model.dtype,
        "skip_tokenizer_init": True,  # tokens in, tokens out
        "seed": 0,  # of requests without one of their own: there are none
        "max_num_seqs": settings.batch_size,
        "gpu_memory_utilization": settings.memory_share,
        "enforce_eager": settings.eager,
        "enable_prefix_caching": True,
        "enable_sleep_mode": settings.sleep > 0,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
        **({"max_model_len": settings.context} if settings.context else {}),
        **({"enable_chunked_prefill": False, **whole_prompts(path, settings)} if on_cpu else {}),
    }


def prepare_process() -> None:
    """What vLLM reads from the environment; what the user has set stays."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; this and the next are read on a CPU only
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner's threads are in this process too
    }
    if find_spec("flashinfer") is None:
        defaults["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
