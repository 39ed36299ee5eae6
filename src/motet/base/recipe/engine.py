"""`[engine]`: who samples, and how."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.parts import Fraction, Part

VLLM_NEEDS = {
    "transfer": ("python", "urls"),
    "transfer_folder": ("python", "urls"),
    "bucket_mebibytes": ("python", "urls"),
    "arguments": ("python",),
    "gpus": ("python",),
}
"""Settings that only these ways of running vLLM read."""
VLLM_ONLY = frozenset(VLLM_NEEDS) | {"python", "urls", "context", "memory_share", "eager", "sleep", "largest_drift"}


class Price(Part):
    """Of an endpoint, in any currency; `caps.cost` is in the same one."""

    input: float = Field(default=0.0, ge=0.0)
    """For a million tokens of prompts."""
    output: float = Field(default=0.0, ge=0.0)
    """For a million tokens written, those of the reasoning included."""


class Caps(Part):
    """What an endpoint is asked for at most. `batch_size` is how many requests are under way at once."""

    requests_per_minute: PositiveInt | None = None
    """In any 60 seconds, repeated tries included."""
    tokens_per_minute: PositiveInt | None = None
    """In any 60 seconds, prompts and completions; a request counts with all that it may take until its reply tells."""
    cost: PositiveFloat | None = None
    """Of a stage with this endpoint, by `price`: a request that could pass it is not sent, and the run stops with all
    replies kept. Raised, the same command goes on."""


ENDPOINT_ONLY = ("extra", "omit", "choices", "price", "caps")
OWN_FIELDS = frozenset(
    {"model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "n", "stream"}
)
"""Of a request, which motet fills itself."""
ENGINE_IDENTITY = frozenset({"kind", "url", "model", "script", "extra", "omit", "arguments"})
"""Settings that decide what an engine answers; the others decide how fast, how often and at what cost it is asked."""


class Engine(Part):
    kind: Literal["transformers", "vllm", "endpoint", "scripted"] = "transformers"
    """"transformers" samples in this process; "vllm" in this process, or in servers that take new weights (see `python`
    and `urls`); "endpoint" asks an OpenAI-compatible server; "scripted" reads a file."""
    batch_size: PositiveInt = 128
    """How many completions are decoded side by side (by each vllm server), or asked for at once (endpoint)."""
    url: str | None = None
    """Base URL of the endpoint, up to and including /v1."""
    model: str | None = None
    """Name of the model at the endpoint; a folder or hub id for a local teacher."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; an unset variable means no key. The key itself is
    written nowhere."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """endpoint: more fields of each request, as the provider names them: { reasoning_effort = "high" }, or
    { chat_template_kwargs = { enable_thinking = true }, top_k = 20 }."""
    omit: tuple[str, ...] = ()
    """endpoint: fields that it does not take, e.g. ["seed", "top_p"]; a refusal that names seed, logprobs,
    return_token_ids, n or max_tokens is heeded by itself."""
    choices: PositiveInt = 4
    """endpoint: most completions of one prompt asked by one request (its `n`), so that the prompt is paid once; each
    by a request of its own where the server does not take n (ours)."""
    price: Price | None = None
    """endpoint: what tokens cost, for the estimate and for `caps.cost`; { input = 0.5, output = 2.0 }."""
    caps: Caps = Field(default_factory=Caps)
    """endpoint: limits of rate and cost."""
    script: str | None = None
    """JSON Lines file of the scripted engine: rows with `prompt` (the last user turn) and `replies`."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one reply of an endpoint."""
    retries: int = Field(default=5, ge=0)
    """How often a failed request is repeated, with exponential back-off; how often a dead vllm server is restarted."""
    python: str | None = None
    """vllm: the Python of an environment that has vLLM (`make vllm` makes .venv-vllm/bin/python); motet starts a server
    there and watches it. Without it and without `urls`, vLLM runs in this process."""
    urls: tuple[str, ...] = ()
    """vllm: servers that run already, ["http://node1:8000", "http://node2:8000"] say; requests are spread over them."""
    arguments: tuple[str, ...] = ()
    """vllm: more arguments of `vllm serve` for the server that `python` starts: ["--tensor-parallel-size", "2"]."""
    gpus: tuple[NonNegativeInt, ...] = ()
    """vllm: GPUs of this machine, counted from 0, for the servers that `python` starts: one on each, or on as many as
    --tensor-parallel-size among `arguments` says. The learner's processes have the machine's first GPUs, so
    [4, 5, 6, 7] goes with torchrun --nproc-per-node 4. Unset: one server, on the GPU of the learner's first process."""
    context: PositiveInt | None = None
    """vllm: longest prompt and completion together, in tokens; unset, the model's own."""
    memory_share: Fraction = 0.5
    """vllm: share of the GPU's memory for its weights and cache together; the learner has the rest (ours)."""
    eager: bool = False
    """vllm: neither compile nor record CUDA graphs: starts in seconds instead of a minute, and samples more slowly."""
    sleep: Literal[0, 1, 2] = 0
    """vllm: give the GPU's memory back after each sampling. 1 keeps the weights in host memory; 2 drops them too, and
    takes them again from the learner's tensors. Not for `urls`, whose memory is another's."""
    transfer: Literal["auto", "ipc", "nccl", "files"] = "auto"
    """vllm: how weights reach servers: CUDA IPC (same GPU), NCCL (other GPUs), or safetensors files. "auto", for
    servers that motet starts: IPC on the learner's GPU, NCCL on others of `gpus` where vLLM is importable beside motet,
    else files. A server that runs already must have been started for the same."""
    transfer_folder: str | None = None
    """vllm: where the files lie for a moment; servers on other machines must see it at the same path. Unset, a
    temporary folder, in memory where the system has one."""
    bucket_mebibytes: PositiveInt = 512
    """vllm: most weights in one file or one IPC message."""
    largest_drift: PositiveFloat | None = None
    """vllm: when an rl stage starts, the largest mean difference between the engine's log-probabilities and the
    learner's under the same weights, nats; a larger one stops the run. Unset, 0.002 in float32 and 0.05 in bfloat16
    (ours). Later steps are the alarm drift's."""

    @property
    def gpus_of_a_server(self) -> int:
        """By --tensor-parallel-size (-tp) among `arguments`."""
        words = [part for word in self.arguments for part in word.replace("_", "-").split("=", 1)]
        for name, value in pairwise(words):
            if name in ("--tensor-parallel-size", "-tp") and value.isdecimal():
                return max(1, int(value))
        return 1

    @property
    def apart(self) -> bool:
        """Whether servers that motet starts are on other GPUs than the learner's first process."""
        return bool(self.gpus) and 0 not in self.gpus

    @model_validator(mode="after")
    def _vllm_settings(self) -> Engine:
        defaults = type(self).model_fields  # not model_fields_set: resolved.json spells every field out
        given = sorted(name for name in VLLM_ONLY if getattr(self, name) != defaults[name].default)
        if self.kind != "vllm" and given:
            raise ValueError(f'{given[0]} is a setting of kind = "vllm"; with kind = "{self.kind}" nothing reads it')
        if self.urls and self.python:
            raise ValueError("python starts a server, and urls names servers that run already: give one of them")
        ways = {"urls": bool(self.urls), "python": bool(self.python)}
        for name, fits in VLLM_NEEDS.items():
            if name in given and not any(ways[way] for way in fits):
                raise ValueError(f"{name} has no effect without {' or '.join(fits)}")
        if len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus = {list(self.gpus)} names one twice")
        if len(self.gpus) % self.gpus_of_a_server:
            raise ValueError(
                f"{len(self.gpus)} gpus are no whole number of servers on {self.gpus_of_a_server} each (arguments)"
            )
        useless = sorted({"sleep", "memory_share", "eager", "context"} & set(given)) if self.urls else []
        if useless:
            raise ValueError(f"{useless[0]} is decided where the servers of urls were started")
        return self

    @model_validator(mode="after")
    def _endpoint_settings(self) -> Engine:
        defaults = {
            name: type(self).model_fields[name].get_default(call_default_factory=True) for name in ENDPOINT_ONLY
        }
        given = [name for name in ENDPOINT_ONLY if getattr(self, name) != defaults[name]]
        if self.kind != "endpoint" and given:
            raise ValueError(
                f'{given[0]} is a setting of kind = "endpoint"; with kind = "{self.kind}" nothing reads it'
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):  # not quoted: it may be the key itself
            raise ValueError("api_key_env must be the name of an environment variable, as OPENAI_API_KEY, not a key")
        if self.url is not None and re.search(r"//[^/?#]*@", self.url):  # not quoted either
            raise ValueError("url holds a user or a password; a key belongs in the variable of api_key_env")
        if self.caps.cost is not None and self.price is None:
            raise ValueError("caps.cost needs price = { input = ..., output = ... }, for a million tokens")
        own = sorted(OWN_FIELDS & self.extra.keys())
        if own:
            raise ValueError(f"extra: {own[0]!r} is filled by motet; see sampling, model and choices")
        needed = {"model", "messages"} & set(self.omit)
        if needed:
            raise ValueError(f"omit: a request without {min(needed)!r} is none")
        secret = next((name for name in self.extra if re.search(r"api.?key|authorization|secret", name, re.I)), None)
        if secret is not None:
            raise ValueError(
                f"extra: {secret!r} would be written to files; a key belongs in the variable of api_key_env"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> Engine:
        if self.kind == "endpoint" and not (self.url and self.model):
            raise ValueError('an "endpoint" engine needs url and model')
        if self.kind == "scripted" and not self.script:
            raise ValueError('a "scripted" engine needs script, a JSON Lines file of replies')
        return self


class Sampling(Part):
    temperature: float = Field(default=1.0, ge=0.0)
    """0 is greedy. In RL the learner's log-probabilities are taken at this temperature too."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling, for teachers and evaluation; refused in RL, where it would bias the ratio."""
    max_tokens: PositiveInt = 256
    """Longest completion; one cut here has the verdict `truncated`."""
