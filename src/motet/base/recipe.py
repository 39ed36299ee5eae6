"""The recipe: what every key means, its type, its default. `motet explain KEY` prints the docstrings of this file.

A recipe is TOML. `stages` names the order; `[stage.NAME]` says what each does; `[problems.NAME]` names problem sets::

    extends = "stable"
    name = "quickstart"
    stages = ["base", "sft-1", "rl"]
    [problems.addition]
    task = "addition"
    [stage.base]
    kind = "evaluate"
    [stage.sft-1]
    kind = "sft"
    data = [{ problems = "addition" }]

Defaults marked (ours) are not given by arXiv 2512.11463; see `presets/paper.toml` for what it says.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PositiveFloat, PositiveInt, model_validator


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _weight(given: Any) -> float | tuple[tuple[int, float], ...]:
    """A positive number, or points [[step, weight], ...] in order of steps, not all of weight 0."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0.0 < given < math.inf:
            raise ValueError(f"a weight must be positive, got {given}")
        return float(given)
    what = "a weight is a positive number, or points [[step, weight], ...] in order of steps, say [[0, 3], [100, 1]]"
    points = list(given) if isinstance(given, list | tuple) else []
    for place, point in enumerate(points):
        pair = isinstance(point, list | tuple) and len(point) == 2
        if not pair or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in point):
            raise ValueError(f"{what}; got {point!r}")
        step, value = point
        if step != int(step) or step < 0 or not 0.0 <= value < math.inf or (place and step < points[place - 1][0]):
            raise ValueError(f"{what}; got {given!r}")
    if not any(value > 0 for _, value in points):
        raise ValueError(f"{what}; got {given!r}")
    return tuple((int(step), float(value)) for step, value in points)


Weight = Annotated[float | tuple[tuple[int, float], ...], PlainValidator(_weight)]
"""Straight lines between the points, constant before the first and after the last; two points at one step: a jump."""


class TinyModel(Part):
    """A small Llama with random weights, for runs that take minutes on a CPU."""

    hidden: PositiveInt = 96
    """Width of the residual stream."""
    layers: PositiveInt = 3
    """Number of transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads; `hidden` is a multiple of twice their number."""
    mlp: PositiveInt = 256
    """Width of the gated feed-forward layer."""
    context: PositiveInt = 1024
    """Largest number of positions."""

    @model_validator(mode="after")
    def _divisible(self) -> TinyModel:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({2 * self.heads}): each head rotates pairs"
            )
        return self


class ModelSizes(Part):
    """Of a dense gated transformer, to plan for one that is not at hand."""

    hidden: PositiveInt
    """Width of the residual stream."""
    layers: PositiveInt
    """Number of transformer blocks."""
    heads: PositiveInt
    """Query heads."""
    key_heads: PositiveInt
    """Key and value heads; they divide `heads`."""
    head: PositiveInt
    """Width of a head."""
    mlp: PositiveInt
    """Width of the gated feed-forward layer."""
    vocabulary: PositiveInt
    """Tokens of the vocabulary."""
    tied: bool = False
    """Head and embedding are one matrix."""

    @model_validator(mode="after")
    def _grouped(self) -> ModelSizes:
        if self.heads % self.key_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of key_heads ({self.key_heads})")
        return self


class Model(Part):
    path: str | None = None
    """A Hugging Face folder or hub id. Leave it out to start from a `tiny` model with random weights."""
    tiny: TinyModel | None = None
    """Shape of a randomly initialised model; its tokenizer has one token a character and one for each frequent word."""
    sizes: ModelSizes | None = None
    """Sizes of the model at `path`, for `motet plan` on a machine that does not have it; a run reads the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation and of the export; logits, softmax, loss and sums of gradients are float32 always."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that the optimizer steps on, and of its state. "bfloat16" saves 8 bytes a parameter, and
    loses updates smaller than 1/256 of a weight."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU when torch sees one."""
    recompute: Literal["auto", "none", "matmul", "attention", "full", "offload"] = "auto"
    """What a block computes again in the backward pass, to save memory: nothing; all but attention and matrix products;
    all but attention; everything; everything, with its input moved to host memory meanwhile. "auto" keeps as much as
    the GPU's memory allows, and everything on a CPU."""
    head: Literal["own", "liger", "cut-cross-entropy"] = "own"
    """Whose log-probabilities SFT is trained on: motet's, or those of a package, which are compared with motet's on the
    first row and give no entropies. RL uses motet's."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's blocks: half a minute at the start, then faster steps. "auto": on a GPU in bfloat16."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give exactly one of path (a checkpoint) and tiny (a random model)")
        if self.sizes is not None and self.path is None:
            raise ValueError("sizes stand for the model at path; tiny has its own")
        return self

    @model_validator(mode="after")
    def _weights_are_as_exact_as_the_computation(self) -> Model:
        if self.weights == "bfloat16" and self.dtype == "float32":
            raise ValueError('weights = "bfloat16" needs dtype = "bfloat16": products of rounded weights are not exact')
        return self


class Mesh(Part):
    """How many processes share the work, and along which axes; they are started by torchrun.

    The product of the three is the number of processes. Parameters, gradients and optimizer state are cut over
    dp_shard x sp, which stays inside a node, and repeated over dp_replicate.
    """

    dp_replicate: PositiveInt | None = None
    """Copies of the whole state, each on documents of its own; unset, what the other two leave: one a node."""
    dp_shard: PositiveInt | None = None
    """Parts of the state, each on documents of its own; unset, the processes of a node divided by sp."""
    sp: PositiveInt = 1
    """Processes that share one packed row (Ulysses): each has a slice of its tokens, in attention a slice of its
    heads. It divides the model's number of attention heads."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass and gather them again in the backward pass. False: less
    traffic, 2 bytes a parameter more memory in bfloat16."""
    reduce_once: bool = True
    """Gradients cross the network with the last micro-batch of a step only. False: with each one, which saves the
    4 bytes a parameter in which each process otherwise sums its own."""
    timeout_seconds: PositiveInt = 900
    """A process that waits longer than this for the others ends the run, with the stack of every process."""


class Machine(Part):
    """What `motet plan` plans for; a run takes what it is started on."""

    nodes: PositiveInt = 1
    """Computers."""
    gpus: PositiveInt = 1
    """GPUs of each."""
    memory_gib: PositiveFloat = 79.2
    """Memory of one GPU as its driver states it; 79.2 is what a card sold as 80 GB has."""
    host_gib: PositiveFloat | None = None
    """Memory of each computer; unset, it is not compared with what is needed."""


class Chat(Part):
    think: Literal["required", "off"] = "required"
    """"required": a completion is <think>reasoning</think>answer, anything else is malformed. "off": no think tags."""
    open_think: bool = False
    """The prompt already ends with the opening think tag, and only the closing one is generated."""
    template: str | None = None
    """A jinja file that replaces the tokenizer's own chat template."""
    system: str | None = None
    """A system message put before every problem that has none."""

    @model_validator(mode="after")
    def _open_block_is_wanted(self) -> Chat:
        if self.open_think and self.think == "off":
            raise ValueError('open_think = true needs think = "required": nothing would look for the closing tag')
        return self


VLLM_NEEDS = {
    "transfer": ("python", "urls"),
    "transfer_folder": ("python", "urls"),
    "bucket_mebibytes": ("python", "urls"),
    "arguments": ("python",),
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
    """vllm: how weights reach servers: CUDA IPC (same GPU), NCCL (other GPUs), or safetensors files. "auto" is IPC for
    a server that motet starts on a GPU, else files. A server that runs already must have been started for the same."""
    transfer_folder: str | None = None
    """vllm: where the files lie for a moment; servers on other machines must see it at the same path. Unset, a
    temporary folder, in memory where the system has one."""
    bucket_mebibytes: PositiveInt = 512
    """vllm: most weights in one file or one IPC message."""
    largest_drift: PositiveFloat | None = None
    """vllm: after new weights, the largest mean difference between the engine's log-probabilities and the learner's;
    unset, 0.002 in float32 and 0.05 in bfloat16 (ours)."""

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


class Verification(Part):
    workers: PositiveInt = 2
    """Worker processes that judge; each is killed and replaced when an item passes its deadline."""
    deadline_seconds: PositiveFloat = 10.0
    """Longest time for one verdict, the tests of a program included."""
    sandbox: Annotated[str, Field(pattern=r"^(auto|bubblewrap|landlock|unsafe-rlimits|https?://\S+)$")] = "auto"
    """How untrusted programs are kept in: "bubblewrap", "landlock", the better of these that works ("auto"), or the
    http(s) address of a server that runs them. "unsafe-rlimits" lets them read and write this user's files."""
    test_seconds: PositiveFloat = 4.0
    """Longest time for one test of a program."""
    memory_mb: PositiveInt = 4096
    """Address space of one worker; a verifier that wants more fails with an infra_error."""


ScoredKind = Literal["correct", "incorrect", "no_answer", "malformed", "truncated", "too_complex", "timeout"]
"""Verdicts that have a reward."""


class Rewards(Part):
    """What each verdict earns in RL. infra_error and invalid_problem earn nothing: masked, counted and alarmed."""

    correct: float = 1.0
    """Reward of a correct answer."""
    incorrect: float = 0.0
    """Reward of a wrong answer."""
    no_answer: float = 0.0
    """Reward of a text in which no answer was found."""
    malformed: float = 0.0
    """Reward of unparsable output: unbalanced think tags, several final answers, a hedge."""
    too_complex: float = 0.0
    """Reward of an answer that is too large to be checked."""
    timeout: float = 0.0
    """Reward of an answer whose check passed its deadline."""
    truncated: float | None = None
    """Reward of a completion cut at max_tokens; unset, it is out of the loss and of its group's statistics."""


class ProblemSet(Part):
    """Problems of one kind, split once into a training and a held-out side that share no problem."""

    task: str | None = None
    """A built-in set (`motet tasks` lists them), e.g. "addition", "reasoning_gym", "gsm_symbolic", "humaneval"."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the task."""
    path: str | None = None
    """A JSON Lines or Parquet file, a folder of them, or a Hugging Face hub id."""
    split: str = "train"
    """Split of a hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps our fields (prompt, messages, answer, tests, instructions, id, domain, split_key) to the file's columns."""
    domain: str | None = None
    """Domain of the problems; a task has one of its own."""
    verifier: str | None = None
    """"math" | "instruction" | "code" | "procedural", or path/to/file.py:function; a task has one of its own."""
    count: PositiveInt | None = None
    """How many problems to take; needed for generated sets, whose supply has no end."""
    heldout: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the templates (of the problems, where there are none) that is kept for evaluation."""
    scoring: Literal["all", "mean"] = "all"
    """Reward of problems with several instructions: only when all are followed, or ("mean") an incorrect answer earns
    the share that it follows. Verdicts, pass rates and evaluation are those of "all" either way."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A malformed row or a gold answer that its verifier rejects: stop, or drop the row, count it and go on."""

    @model_validator(mode="after")
    def _one_source(self) -> ProblemSet:
        if (self.task is None) == (self.path is None):
            raise ValueError("give exactly one of task (a built-in set) and path (your own problems)")
        return self


class Mix(Part):
    """One share of a mixture of problems."""

    problems: str | None = None
    """Name of a problem set; its training side is used."""
    stage: str | None = None
    """Name of a filter stage; the problems that it kept are used."""
    domain: str | None = None
    """Only the problems of this domain."""
    weight: Weight = 1.0
    """Relative share of the draws; with `stage` and no `domain`, the domains inside share it evenly. In an rl stage it
    may change over the steps: [[0, 3.0], [100, 1.0]] falls in a straight line from 3 at the start to 1 at step 100."""

    @model_validator(mode="after")
    def _one_source(self) -> Mix:
        if (self.problems is None) == (self.stage is None):
            raise ValueError("give exactly one of problems (a problem set) and stage (a filter stage)")
        return self


class SftSource(Part):
    """One share of a mixture of training conversations."""

    problems: str | None = None
    """A problem set whose worked solutions are the conversations (training side only)."""
    stage: str | None = None
    """A synthesize or clean stage whose rows are the conversations; or a filter stage (see `rows`)."""
    rows: Literal["traces", "solutions"] = "traces"
    """Of a filter stage: the correct rollouts of the problems that it kept ("traces": rejection sampling), or their
    worked solutions. One that is by = "surprisal" gives the conversations that it kept as "traces"."""
    path: str | None = None
    """A JSON Lines or Parquet file (or folder, or hub id) with `messages`, or `prompt` and `completion`."""
    split: str = "train"
    """Split of a hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps our fields (messages, conversations, prompt, completion, reasoning, system, id, domain) to the file's
    columns, with dots into nested objects."""
    weight: Weight = 1.0
    """Relative share of the drawn conversations. It may change over the stage's steps: [[0, 3.0], [100, 1.0]] falls in
    a straight line from 3 at the start to 1 at step 100; two points at one step are a jump."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A malformed row, or one whose rendering the checks of `motet inspect` refuse: stop, or drop it, count it and go
    on."""

    @model_validator(mode="after")
    def _one_source(self) -> SftSource:
        if [self.problems, self.stage, self.path].count(None) != 2:
            raise ValueError("give exactly one of problems, stage and path")
        if self.rows != "traces" and self.stage is None:
            raise ValueError(f'rows = "{self.rows}" is for a filter stage; give its name as stage')
        return self


class Optimizer(Part):
    kind: Literal["adamw", "muon"] = "adamw"
    """"muon" orthogonalises the updates of the blocks' matrices (torch.optim.Muon, scaled to AdamW's update size);
    embeddings, head, gains and biases are AdamW's."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a cosine down to `final_ratio`."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""
    final_ratio: Fraction = 0.1
    """Last learning rate of the cosine, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    epsilon: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay, on matrices only."""
    momentum: Fraction = 0.95
    """Muon's momentum."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop, or leave the weights as they are and go on (at most ten times in a
    row). Either way the batch is written to STAGE/nonfinite-N.jsonl."""


class Rope(Part):
    """Rotary positions of a stage; they are part of the model from then on, and of its export."""

    kind: Literal["theta", "linear", "yarn"] = "yarn"
    """"theta" only changes the base; "linear" divides the positions (arXiv 2306.15595); "yarn" divides the low
    frequencies (arXiv 2309.00071)."""
    positions: PositiveInt
    """Largest number of positions from now on. The factor of "linear" and "yarn" is this by the original number."""
    theta: PositiveFloat | None = None
    """Base of the wavelengths; unset, the model's own. Needed by "theta"."""

    @model_validator(mode="after")
    def _theta_is_given(self) -> Rope:
        if self.kind == "theta" and self.theta is None:
            raise ValueError('kind = "theta" needs theta, the new base, e.g. theta = 1e6')
        return self


class Lora(Part):
    """Low-rank adapters (arXiv 2106.09685) in place of full training; needs the extra `motet[lora]`."""

    rank: PositiveInt = 16
    """Width of the adapters."""
    alpha: PositiveFloat = 32.0
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get one, e.g. ["q_proj", "v_proj"]; "all-linear" is all but the head."""


class StageBase(Part):
    init: str = "previous"
    """Which weights the stage starts from: "previous" (the last stage that made some), "base", or a stage's name."""
    evaluate: bool = True
    """Run the evaluation on the weights that this stage made."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW and its schedule; used by sft and rl."""
    micro_batch_tokens: PositiveInt = 16384
    """Most packed tokens in one forward and backward pass; it changes memory and speed, never the gradients."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; a killed run redoes at most this many."""


class TrainingStage(StageBase):
    rope: Rope | None = None
    """Rotary positions from this stage on, e.g. { kind = "yarn", positions = 65536 }; unset, the model's own."""
    lora: Lora | None = None
    """Train low-rank adapters, e.g. { rank = 16 }. They are saved in STAGE/adapter, and merged in STAGE/model."""


class LengthBand(Part):
    """Conversations between the band before (or 0) and `up_to`, and how often they are drawn."""

    up_to: PositiveInt
    """Longest conversation of the band, in tokens; the shortest is one token more than the band before allows."""
    weight: Weight = 1.0
    """Share of each source's draws against the other bands that it has; it may change over the steps, as a source's."""


class SftStage(TrainingStage):
    kind: Literal["sft"]
    """Supervised fine-tuning on a mixture of conversations."""
    data: tuple[SftSource, ...] = Field(min_length=1)
    """The mixture of this stage."""
    context: PositiveInt = 16384
    """Longest conversation in tokens (the recipe: 16K, then 32K, then 64K). A longer one is dropped and counted. Unset,
    at most the model's positions; set beyond them, it needs `rope`."""
    min_tokens: PositiveInt = 1
    """Shortest conversation in tokens; a shorter one is dropped and counted."""
    lengths: tuple[LengthBand, ...] = ()
    """Bands of length in ascending order, each with its share of the draws: half of them longer than 32K is
    [{ up_to = 32768 }, { up_to = 65536 }]. What is longer than the last band is dropped and counted; of those held
    out, only what is longer than `context`."""
    steps: PositiveInt = 500
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Conversations in one optimizer step."""
    batch_tokens: PositiveInt | None = None
    """About so many tokens in one optimizer step, in place of `batch_size`: the number of conversations is this by
    their mean length, so that stages of different lengths train equally many tokens a step."""
    heldout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the conversations, chosen by their ids, that no stage with the same share trains on; their loss is
    measured at the end."""
    probe_every: PositiveInt | None = None
    """Measure the loss of the conversations held out every so many steps too."""

    @model_validator(mode="after")
    def _lengths_make_sense(self) -> SftStage:
        ends = [band.up_to for band in self.lengths]
        if ends != sorted(set(ends)):
            raise ValueError(f"lengths: up_to must rise from band to band, got {ends}")
        longest = min([self.context, *ends[-1:]])
        if self.min_tokens > longest:
            raise ValueError(f"min_tokens ({self.min_tokens}) is more than the longest conversation, {longest} tokens")
        if any(end >= self.context for end in ends[:-1]):
            raise ValueError(f"lengths: the bands after {self.context} tokens are empty: no conversation is longer "
                             "than context")  # fmt: skip
        if self.probe_every is not None and self.heldout == 0.0:
            raise ValueError("probe_every needs heldout, the share of the conversations that is measured: 0.02, say")
        return self


RuleId = Literal[
    "answer", "code_tests", "majority", "think_answer",
    "think_balanced", "finished", "one_answer", "reasoning_length", "max_tokens",
    "repetition", "repeated_spans", "periodic_tail", "compression",
    "language", "leak_prompt", "leak_gold", "leak_template", "leak_teacher", "arithmetic",
    "contamination_13", "contamination_8", "contamination_numbers",
    "exact_duplicate", "near_duplicate", "judge", "max_per_problem",
]  # fmt: skip
"""Rules of the data funnel, in the order of docs/data.md."""
LEAKED_NAMES = ("chatgpt", "gpt-4", "gpt-5", "gpt-oss", "deepseek", "qwen", "kimi", "minimax", "glm-4")


class TraceRules(Part):
    """Which traces become training data; each rule has an id, its own count and three examples in the report."""

    off: tuple[RuleId, ...] = ()
    """Rules that drop nothing, e.g. ["language", "arithmetic"]; what they would have dropped is counted all the same,
    where it costs nothing."""
    correct: bool = True
    """The final answer passes the problem's verifier (rules answer and code_tests), or is that of the majority where
    there is nothing to verify by; false switches the three off."""
    majority_traces: int = Field(default=4, ge=2)
    """Without a gold answer: a problem with at least so many answered traces keeps those of its most frequent
    answer."""
    majority_share: Fraction = 0.5
    """Smallest share that the most frequent answer must have; below it all of the problem's traces are dropped."""
    min_reasoning_tokens: int = Field(default=1, ge=0)
    """Shortest reasoning, in tokens of the student."""
    max_tokens: PositiveInt | None = None
    """Longest trace, prompt included; unset, the context of the SFT stage decides."""
    max_repetition: Fraction = 0.5
    """Largest share of repeated word 4-grams in the trace (ours)."""
    max_repeated_spans: Fraction = 0.2
    """Largest share of repeated word 20-grams: whole sentences said again (ours)."""
    max_periodic_tail: PositiveInt = 200
    """Most words at the end of the trace that go round in a circle of at most 40 words (ours)."""
    max_compression: PositiveFloat = 12.0
    """Most bytes of trace for each byte that zlib makes of it: prose has 2 to 4, a loop hundreds (ours)."""
    max_foreign_letters: Fraction = 0.05
    """Largest share of letters in scripts that the prompt does not use; Latin and Greek are every prompt's (ours)."""
    leaked_names: tuple[str, ...] = LEAKED_NAMES
    """Names that no trace may hold unless its prompt does (rule leak_teacher)."""
    max_wrong_arithmetic: Fraction = 0.1
    """Largest share of wrong among the statements "a + b = c" of a trace (ours)."""
    contamination_share: Fraction = 0.5
    """Rules contamination_8 and contamination_numbers: the share of an evaluation question's words that the rare
    8-grams of a row must cover (ours)."""
    common_share: Fraction = 0.001
    """An 8-gram in more than this share of the prompts (and in at least four of them) is a phrase, not a trace of an
    evaluation question (ours)."""
    deduplicate: bool = True
    """Keep one of several equal traces of a problem (compared without case and spacing)."""
    near_duplicates: Fraction = 0.6
    """Of two traces whose word 3-grams agree by this (Jaccard) the first is kept; 1 leaves the rule nothing (ours)."""
    near_words: PositiveInt = 40
    """Traces with fewer words are compared exactly only (ours)."""
    max_per_problem: PositiveInt = 4
    """Most traces kept for one problem (ours)."""
    judge: Engine | None = None
    """A model that is asked of each kept trace whether it holds a false statement; it is asked twice, with the two
    verdicts named in either order, and only two complaints drop a trace. Unset: none is asked."""
    judge_audit: PositiveInt = 50
    """Judged traces that are drawn at random into audit.jsonl, to be read by a person."""

    @model_validator(mode="after")
    def _judge_has_a_model(self) -> TraceRules:
        if self.judge is not None and self.judge.kind in ("transformers", "vllm") and self.judge.model is None:
            raise ValueError("judge: name its model; the model in training does not judge its own data")
        return self

    def is_on(self, rule: RuleId) -> bool:
        if rule in ("answer", "code_tests", "majority") and not self.correct:
            return False
        if (rule == "exact_duplicate" and not self.deduplicate) or (rule == "judge" and self.judge is None):
            return False
        return rule not in self.off


class Teacher(Engine):
    """An engine that writes traces for the model in training, one of several."""

    share: PositiveFloat = 1.0
    """Relative share of the problems of each domain that are put to it."""
    sampling: Sampling | None = None
    """How it samples; unset, as the stage says."""
    ask: str | None = None
    """How problems are put to it; unset, as the stage says."""


class SynthesizeStage(StageBase):
    kind: Literal["synthesize"]
    """Traces asked of a teacher, verified and sieved: training data for an sft stage."""
    problems: tuple[Mix, ...] = Field(min_length=1)
    """Which problems are put to the teacher."""
    count: PositiveInt = 512
    """How many problems."""
    samples: PositiveInt = 4
    """Traces asked for each problem."""
    teacher: Engine | None = None
    """Who writes the traces; unset, the model that this stage starts from (rejection sampling)."""
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    """Several teachers by name, asked one after the other: [stage.NAME.teachers.big]. One of kind "transformers"
    without a model is the model that this stage starts from."""
    ask: str = "{prompt}"
    """How a problem is put to a teacher, e.g. "{prompt} Put the final answer in \\boxed{}.". The trace is kept with the
    problem as it is."""
    assign: Literal["share", "all"] = "share"
    """With `teachers`: each problem is put to one of them, by their shares, or every problem to all of them."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How the teacher samples."""
    rules: TraceRules = Field(default_factory=TraceRules)
    """What a trace must pass."""

    @model_validator(mode="after")
    def _teachers_are_told_apart(self) -> SynthesizeStage:
        if self.teacher is not None and self.teachers:
            raise ValueError("give teacher (one) or teachers (several, by name), not both")
        if self.assign == "all" and not self.teachers:
            raise ValueError('assign = "all" has no effect without teachers')
        for place, text in (("ask", self.ask), *((f"teachers.{n}.ask", t.ask) for n, t in self.teachers.items())):
            if text is not None and text.count("{prompt}") != 1:
                raise ValueError(f"{place}: {text!r} must hold {{prompt}} once, where the problem goes")
        for name, teacher in self.teachers.items():
            if not re.fullmatch(r"\w[\w+-]*", name):
                raise ValueError(f"teachers: {name!r} cannot name a file; use letters, digits and _ - +")
            if self.assign == "all" and teacher.share != 1.0:
                raise ValueError(f'teachers.{name}.share has no effect with assign = "all": each gets every problem')
        return self


class CleanStage(StageBase):
    kind: Literal["clean"]
    """Conversations of any source through the data funnel: training data for an sft stage."""
    data: tuple[SftSource, ...] = Field(min_length=1)
    """What is read, one source after the other; all of each, so weights have no place here."""
    count: PositiveInt | None = None
    """Most rows of each source; unset, all."""
    gold: bool = True
    """Judge rows that hold a reference (answer, tests, instructions, ...) by its verifier."""
    rules: TraceRules = Field(default_factory=TraceRules)
    """What a row must pass."""

    @model_validator(mode="after")
    def _all_of_each(self) -> CleanStage:
        for place, source in enumerate(self.data):
            if source.weight != 1.0:
                raise ValueError(f"data[{place}].weight has no effect here: weigh {{ stage = ... }} in the sft stage")
        return self


class Band(Part):
    alpha: Fraction = 0.2
    """Lowest pass rate that is kept. The paper gives no value; ours asks for one success in five."""
    beta: Fraction = 0.8
    """Highest pass rate that is kept (the paper: 0.8, and 0.4 for instruction following)."""

    @model_validator(mode="after")
    def _ordered(self) -> Band:
        if self.alpha > self.beta:
            raise ValueError(f"alpha ({self.alpha}) must not exceed beta ({self.beta})")
        return self


class Sequential(Part):
    """How `method = "sequential"` spends its rollouts (ours): few on problems that are soon clear, more on others."""

    least: PositiveInt = 2
    """Rollouts that every problem gets."""
    most: PositiveInt = 16
    """Rollouts after which a problem is decided in any case."""
    batch: PositiveInt = 2
    """Rollouts that an undecided problem gets at a time."""
    pilot: PositiveInt = 64
    """Problems of each domain that are asked first, with half of `most`: the prior of the others is learnt from them.
    Later rollouts refine it."""
    confidence: float = Field(default=0.94, gt=0.5, lt=1.0)
    """A problem is decided once the verdict that `most` rollouts would give stands with this probability; one that is
    given up, with more where fewer than a third of the problems lie in the band."""
    keep_at: float = Field(default=0.4, gt=0.0, lt=1.0)
    """A problem is kept when its pass rate lies in the band with at least this probability. Half of the F1 that can be
    reached, about 0.8, makes F1 largest (arXiv 1402.1892)."""

    @model_validator(mode="after")
    def _rounds(self) -> Sequential:
        if self.most < self.least or (self.most - self.least) % self.batch:
            raise ValueError(f"most ({self.most}) must be least ({self.least}) plus a multiple of batch ({self.batch})")
        return self

    @property
    def pilot_rollouts(self) -> int:
        """About half of `most`, and from where batches lead to `most`."""
        return self.least + self.batch * max(0, (self.most // 2 - self.least) // self.batch)


class OpenRows(Part):
    """Which rows `by = "surprisal"` keeps: those between two quantiles of their domain, both ends included (ours)."""

    length: tuple[Fraction, Fraction] = (0.0, 0.95)
    """Quantiles of the trace's length in tokens."""
    surprisal: tuple[Fraction, Fraction] = (0.1, 0.9)
    """Quantiles of the student's mean surprisal (nats a token of the trace): rows that it could have written itself
    teach nothing, and those that are all surprise do not fit it."""

    @model_validator(mode="after")
    def _ordered(self) -> OpenRows:
        for name, (low, high) in (("length", self.length), ("surprisal", self.surprisal)):
            if low >= high:
                raise ValueError(f"{name}: the first quantile ({low}) must be below the second ({high})")
        return self


class FilterStage(StageBase):
    kind: Literal["filter"]
    """The problems that are neither too easy nor too hard, by rollouts: for an rl stage, and for sft."""
    by: Literal["pass_rate", "surprisal"] = "pass_rate"
    """"pass_rate": rollouts of `problems`. "surprisal": training conversations (`data`) by their length and by how much
    they surprise the model, one forward pass a row; for an sft stage where rollouts cost too much."""
    problems: tuple[Mix, ...] = ()
    """Which problems are tried."""
    data: tuple[SftSource, ...] = ()
    """With "surprisal": which conversations are measured."""
    rows: OpenRows = Field(default_factory=OpenRows)
    """With "surprisal": which are kept."""
    count: PositiveInt = 500
    """How many problems (or conversations), all domains together."""
    method: Literal["fixed", "sequential"] = "fixed"
    """"fixed": `n` rollouts of each problem, and the count of correct ones decides (the paper's). "sequential": as many
    as it takes, by a posterior with a prior learnt from a pilot."""
    n: PositiveInt = 5
    """With "fixed": rollouts for each problem, by the model to be trained (the paper: 5)."""
    sequential: Sequential = Field(default_factory=Sequential)
    """With "sequential": how many rollouts, and when to stop."""
    group_size: Annotated[int, Field(ge=2)] | None = None
    """Group size that live groups are forecast for; unset, that of the rl stage that reads this filter (else 8)."""
    band: Band = Field(default_factory=Band)
    """Band of every domain that `bands` does not name."""
    bands: dict[str, Band] = Field(default_factory=dict)
    """Bands by domain."""
    sampling: Sampling = Field(default_factory=Sampling)
    """Should be the sampling of the RL stage that follows."""
    probe: PositiveInt = 128
    """Of so many kept problems one fresh group each, of RL's size, measures the share of live groups after the filter
    (the pilot step); with no live one among them the run stops before RL."""
    traces: PositiveInt = 4
    """Most correct rollouts of a kept problem that become rows for an sft stage that reads this filter (ours)."""

    @model_validator(mode="after")
    def _one_way(self) -> FilterStage:
        if self.by == "pass_rate" and (self.data or not self.problems):
            raise ValueError('by = "pass_rate" needs problems, and reads no data; that is for by = "surprisal"')
        if self.by == "surprisal" and (self.problems or not self.data):
            raise ValueError('by = "surprisal" needs data, the conversations to choose from, and reads no problems')
        unread = {
            "n": self.method == "sequential",
            "sequential": self.method == "fixed",
            "rows": self.by == "pass_rate",
        }
        for name, is_unread in unread.items():
            default = FilterStage.model_fields[name].get_default(call_default_factory=True)
            if is_unread and getattr(self, name) != default:
                raise ValueError(f'{name} has no effect with method = "{self.method}", by = "{self.by}"')
        return self


class Correction(Part):
    """Between the engine's policy and the learner's at the start of a batch; its figures are reported in any case."""

    on: bool = True
    """Weight tokens by it and leave sequences out; false: report alone."""
    token_cap: PositiveFloat = 2.0
    """A token's weight, learner's probability / engine's, is truncated here."""
    sequence_bound: float = Field(default=1.1, gt=1.0)
    """A sequence is out of the loss when the geometric mean of its tokens' weights is above this or below 1 / this
    (ours)."""


class Guard(Part):
    """Ends the steps on a batch that is no longer good: looked at before each step but a batch's first."""

    on: bool = True
    """Stop at a bound; false: take all S steps."""
    m2: float = Field(default=0.04, ge=0.0)
    """Most mean square of the log-ratio to the engine's policy (to the anchor, where the engine tells no
    log-probabilities); 0: no bound (arXiv 2510.01161 bounds it at 0.04)."""
    ess: Fraction = 0.5
    """Least effective sample size of the ratios to the anchor, as a share of the tokens; 0: no bound (ours)."""
    clip_share: Fraction = 0.05
    """Most tokens held at a bound of the objective, as a share; 0: no bound (ours). Not looked at with "gspo", whose
    narrow bounds hold many sequences by design."""
    kl: float = Field(default=0.02, ge=0.0)
    """Most divergence of the current policy from the engine's (from the anchor, where it tells none), nats a token;
    0: no bound (ours)."""


class Algorithm(Part):
    """GRPO with mixed-policy trajectory reuse."""

    advantage: Literal["group", "centred", "leave_one_out", "domain"] = "group"
    """From the rewards of a group: minus its mean, over its deviation ("group": GRPO, the paper's); minus its mean
    ("centred": Dr. GRPO); minus the mean of the others ("leave_one_out": RLOO); minus its mean, over the deviation of
    the batch's rewards in its domain ("domain")."""
    advantage_std: Literal["population", "sample"] = "population"
    """Rewards 1, 0, 1, 0 give +1, -1, +1, -1 with "population" and +-0.866 with "sample" (n - 1, as TRL does)."""
    objective: Literal["clip", "gspo", "cispo", "dppo"] = "clip"
    """"clip": the clipped surrogate, a token at a time. "gspo": of whole sequences (arXiv 2507.18071). "cispo": bounded
    weights, no token left out (2506.13585). "dppo": tokens out whose probability moved too far (2602.04879)."""
    clip_low: PositiveFloat = 0.2
    """The ratio to the anchor is clipped at 1 - clip_low when the advantage is negative."""
    clip_high: PositiveFloat = 0.28
    """... and at 1 + clip_high when it is positive (the paper: expanded, 0.28 to 0.40)."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """With "clip": a token of negative advantage A costs at most -dual_clip x A (arXiv 1912.09729; 3 there)."""
    gspo_low: PositiveFloat = 3e-4
    """With "gspo": the sequence's ratio is clipped at 1 - gspo_low, as published."""
    gspo_high: PositiveFloat = 4e-4
    """... and at 1 + gspo_high."""
    cispo_max: PositiveFloat = 5.0
    """With "cispo": most that a token's ratio weighs (5 as in arXiv 2510.13786)."""
    dppo_low: PositiveFloat = 0.2
    """With "dppo": how far a token's probability may fall below the engine's when the advantage is negative."""
    dppo_high: PositiveFloat = 0.2
    """... and rise above it when it is positive."""
    kl: float = Field(default=0.0, ge=0.0)
    """Coefficient of the divergence from the weights that the stage starts from; they stay in memory when it is set."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of the divergence, from one token: -d, d^2 / 2 or e^d - 1 - d, d = log p_reference - log p."""
    entropy_bonus: float = Field(default=0.0, ge=0.0)
    """Coefficient of the policy's entropy, which is added to what is maximised."""
    aggregation: Literal["domains", "tokens", "sequences", "constant"] = "domains"
    """Mean of the loss: over each domain's tokens, then over domains; over all tokens; over each sequence's tokens,
    then over sequences; or the sum over tokens divided by sequences x max_tokens (Dr. GRPO)."""
    domain_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """With "domains": weight of each domain's mean; 1 for those not named."""
    most_of_a_domain: Fraction = 1.0
    """Largest share of a step's weighted tokens that one of several domains may have; beyond it its tokens weigh less
    and the others' more."""
    passes: PositiveInt = 1
    """How often each sampled batch is gone through."""
    minibatches: PositiveInt = 4
    """Optimizer steps in one pass. S = passes x minibatches gradient steps are taken on each sampled batch."""
    guard: Guard = Field(default_factory=Guard)
    """When to stop before S steps are taken."""
    correction: Correction = Field(default_factory=Correction)
    """Weights for what the engine sampled with other log-probabilities than the learner's."""
    shuffle_rewards: bool = False
    """A control: rewards are permuted among all rollouts of the batch, so that there is nothing to learn."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Algorithm:
        if self.dual_clip is not None and self.objective != "clip":
            raise ValueError(f'dual_clip belongs to objective = "clip"; "{self.objective}" does not read it')
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ValueError(f"dual_clip ({self.dual_clip}) must be above 1 + clip_high ({1.0 + self.clip_high:g})")
        if self.objective == "dppo" and self.correction.on:
            raise ValueError('the ratio of "dppo" is to the engine itself: set correction = { on = false }')
        if self.domain_weights and self.aggregation != "domains":
            raise ValueError(
                f'domain_weights belong to aggregation = "domains"; "{self.aggregation}" does not read them'
            )
        return self


RuleName = Literal[
    "no_signal", "memory", "below_start", "not_generalising", "forgetting", "entropy_collapse", "entropy_blowup",
    "drift", "importance", "stale", "unparsable", "truncated", "length", "repetition", "slow_engine", "slow_verifiers",
]  # fmt: skip
AlarmAction = Literal["off", "note", "pause", "rollback"]


class Alarms(Part):
    """What is looked for in every step, and what is done about it (docs/alarms.md). An alarm says what was seen, why it
    matters, the likely causes and the lines to change. These settings are no part of what the stage is made from:
    changed ones go on from where the run is. Thresholds are ours."""

    action: AlarmAction = "note"
    """Of every alarm that `actions` does not name. "note": in the log, STAGE/alarms.jsonl and the report. "pause":
    the run saves a checkpoint and ends with exit code 3; the same command with `acknowledged` goes on. "rollback":
    back to the last checkpoint that was saved without an alarm, and on from there with fresh random numbers. "off":
    nothing."""
    actions: dict[RuleName, AlarmAction] = Field(default_factory=dict)
    """By rule, e.g. { entropy_collapse = "rollback", drift = "pause" }."""
    acknowledged: tuple[str, ...] = ()
    """Alarms that have been seen, RULE@STEP as the pause names them, e.g. ["drift@40"]: the run goes on, and that alarm
    does not end it again while it lasts."""
    rollbacks: PositiveInt = 1
    """How often a stage may roll back; the next time it pauses."""
    window: int = Field(default=5, ge=1)
    """Steps that a pattern has to last. What rises or falls is compared with the first so many steps."""
    live_share: Fraction = 0.1
    """no_signal: the window's median share of groups with a signal is at most this ..."""
    grad_norm: float = Field(default=1e-5, ge=0.0)
    """... or its median gradient norm is at most this."""
    entropy_low: Fraction = 0.2
    """entropy_collapse: the entropy of what is sampled is below this share of what it was at first, and the pass rate
    does not explain it."""
    entropy_high: float = Field(default=3.0, gt=1.0)
    """entropy_blowup: it is above so many times what it was at first, and by 0.5 nats at least."""
    drift: PositiveFloat = 0.02
    """drift: mean difference of the engine's and the learner's log-probabilities under the same weights, nats."""
    importance_low: PositiveFloat = 0.5
    """importance: the mean weight of tokens between engine and learner is below this ..."""
    importance_high: PositiveFloat = 2.0
    """... or above this ..."""
    importance_ess: Fraction = 0.3
    """... or their effective sample size, as a share of the tokens, is below this."""
    left_out: Fraction = 0.5
    """stale: more than this share of the window's gradient steps was left out because the batch was spent."""
    staleness: PositiveInt = 2
    """stale: rollouts are older than this, in sampled batches; with `overlap` they are one batch old."""
    rise: Fraction = 0.15
    """unparsable, truncated: the share of such rollouts has risen by this much."""
    length: float = Field(default=2.0, gt=1.0)
    """length: completions are so many times as long as at first, and the pass rate has not risen by 5 points."""
    repetition: Fraction = 0.3
    """repetition: share of runs of 8 tokens in a completion that occurred before in it, mean of the window."""
    fall: Fraction = 0.05
    """below_start, forgetting: the held-out pass rate has fallen by this much, and the 95 % interval is below zero.
    Where nothing is held out, forgetting looks at the training pass rate of each domain, for `rise`."""
    gain: Fraction = 0.1
    """not_generalising: the training reward rose by this much while the held-out pass rate rose by less than a quarter
    of it."""
    slowdown: Fraction = 0.5
    """slow_engine: tokens sampled a second are below this share of what they were at first."""
    waiting: Fraction = 0.3
    """slow_verifiers: the share of a step's time spent waiting for verdicts alone."""

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("acknowledged"), str):
            return {**given, "acknowledged": [given["acknowledged"]]}
        return given

    @model_validator(mode="after")
    def _acknowledgements_name_alarms(self) -> Alarms:
        for text in self.acknowledged:
            if not re.fullmatch(r"[a-z_]+@\d+", text) or text.split("@")[0] not in get_args(RuleName):
                raise ValueError(f"acknowledged: {text!r} is not RULE@STEP, e.g. drift@40, as the pause names it")
        if self.importance_low >= self.importance_high:
            raise ValueError(f"importance_low ({self.importance_low}) must be below importance_high "
                             f"({self.importance_high})")  # fmt: skip
        return self

    def of(self, rule: RuleName) -> AlarmAction:
        return self.actions.get(rule, self.action)


class RlStage(TrainingStage):
    kind: Literal["rl"]
    """GRPO on verified rollouts."""
    problems: tuple[Mix, ...] = Field(min_length=1)
    """The mixture; usually [{stage = "filter"}]."""
    steps: PositiveInt = 200
    """Sampled batches."""
    prompts_per_step: PositiveInt = 32
    """Problems in one sampled batch."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of each problem."""
    algorithm: Algorithm = Field(default_factory=Algorithm)
    """The objective and the reuse of trajectories."""
    rewards: Rewards = Field(default_factory=Rewards)
    """What each verdict earns."""
    domain_rewards: dict[str, dict[ScoredKind, float | None]] = Field(default_factory=dict)
    """What a domain's verdicts earn otherwise, e.g. { code = { timeout = -0.5 } }."""
    reuse_filter: int = Field(default=0, ge=0)
    """In so many first steps, groups begin with the rollouts that the filter stage sampled of their problems, and only
    what is missing of group_size is sampled. The filter must have had this stage's weights and sampling; from the
    second step on its rollouts are of older weights, for which `algorithm.correction` must be on."""
    refill: float = Field(default=0.0, ge=0.0, le=100.0)
    """Sample more problems in place of groups without a signal, at most refill x prompts_per_step of them a step
    (dynamic sampling, arXiv 2503.14476); then the step goes on with what it has. 0: none."""
    retire_at: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """A problem rests when its expected pass rate, by the rollouts of filter and RL, is at least this; another one of
    its part of the mixture stands for it. Unset: none rests."""
    return_after: PositiveInt = 50
    """Steps after which a problem that rests may be drawn again."""
    probe_every: PositiveInt | None = None
    """Sample held-out problems of the evaluation every so many steps, by the model in training; unset: not before the
    end."""
    probe: PositiveInt = 64
    """How many of each evaluation set."""
    overlap: bool = False
    """Sample the next batch while the learner steps on this one (one step off): each batch is of the weights before the
    last update, which `algorithm.correction` weighs. It pays where engine and learner do not share the same cores."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How rollouts are sampled."""
    alarms: Alarms = Field(default_factory=Alarms)
    """What is looked for while it trains, and what is done about it."""

    @model_validator(mode="after")
    def _unbiased_sampling(self) -> RlStage:
        if self.sampling.top_p < 1.0:
            raise ValueError(
                f"sampling.top_p = {self.sampling.top_p} is refused in RL: the learner's log-probabilities are those "
                "of the whole distribution; leave it at 1.0"
            )
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature = 0 is refused in RL: all rollouts of a group would be equal")
        if self.sampling.max_tokens >= self.micro_batch_tokens:
            raise ValueError(
                f"sampling.max_tokens ({self.sampling.max_tokens}) must be less than micro_batch_tokens "
                f"({self.micro_batch_tokens}), the most that one pass may hold, prompt and completion together"
            )
        if self.prompts_per_step % self.algorithm.minibatches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of algorithm.minibatches "
                f"({self.algorithm.minibatches}), so that each minibatch holds whole groups"
            )
        return self


class EvaluateStage(StageBase):
    kind: Literal["evaluate"]
    """Nothing but the evaluation, of the weights made so far."""


Stage = Annotated[
    SftStage | SynthesizeStage | CleanStage | FilterStage | RlStage | EvaluateStage, Field(discriminator="kind")
]
TRAINING = ("sft", "rl")
"""Kinds of stages that make weights."""


class EvaluationSet(Part):
    problems: str | None = None
    """A problem set; its held-out side is used."""
    suite: str | None = None
    """A named suite (`motet suites` lists them), e.g. "aime24", "math500", "humaneval"."""
    path: str | None = None
    """Where the suite's data lies, when it is not to be fetched from the hub."""
    count: PositiveInt | None = None
    """At most this many problems; unset, all."""
    samples: PositiveInt | None = None
    """k; unset, the suite's own, or `evaluation.samples` for a problem set."""
    max_tokens: PositiveInt | None = None
    """Of a completion; unset, the suite's own, or `evaluation.sampling.max_tokens`. With fewer than a suite states,
    its score is no longer comparable with others' and the report says so by stating the settings."""

    @model_validator(mode="after")
    def _one_source(self) -> EvaluationSet:
        if (self.problems is None) == (self.suite is None):
            raise ValueError("give exactly one of problems (a problem set) and suite (a named suite)")
        return self


class Evaluation(Part):
    """What is measured after every stage that changes the weights."""

    sets: tuple[EvaluationSet, ...] = ()
    """Empty: the held-out side of every problem set."""
    samples: PositiveInt = 4
    """k: completions for each problem; avg@k and pass@1..k are reported."""
    sampling: Sampling = Field(default_factory=Sampling)
    """A suite's own settings win over these, and those of its entry in `sets` over both."""
    bootstrap: PositiveInt = 2000
    """Resamples (of problems) for the 95 % intervals."""

    @model_validator(mode="after")
    def _each_once(self) -> Evaluation:
        labels = [item.problems or item.suite for item in self.sets]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                raise ValueError(f"sets[{index}]: {label!r} is named twice")
        return self


class Tracking(Part):
    """Where metrics go besides the run folder. What fails there is said once in the log and never stops the run."""

    to: tuple[Literal["trackio", "wandb"], ...] = ()
    """Trackers, e.g. ["trackio"]; each needs its extra, `pip install motet[trackio]`."""
    project: str = "motet"
    """Project at the tracker; the run has the recipe's name."""
    mode: Literal["online", "offline"] = "online"
    """wandb: "offline" writes files that `wandb sync` sends later. trackio always writes files of its own first."""


class Recipe(Part):
    name: str = "run"
    """Name of the run folder, runs/NAME."""
    seed: int = 1
    """All randomness follows from it."""
    stages: tuple[str, ...] = Field(min_length=1)
    """Order of the stages; each is a table [stage.NAME]."""
    model: Model
    """What is trained."""
    mesh: Mesh = Field(default_factory=Mesh)
    """How several processes share the work."""
    machine: Machine | None = None
    """What to plan for; unset, the machine that the plan is made on."""
    chat: Chat = Field(default_factory=Chat)
    """How conversations become tokens."""
    engine: Engine = Field(default_factory=Engine)
    """Who samples from the model in training."""
    verification: Verification = Field(default_factory=Verification)
    """How answers are judged."""
    problems: dict[str, ProblemSet] = Field(default_factory=dict)
    """Problem sets by name."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is measured after every stage."""
    stage: dict[str, Stage]
    """What each stage does."""
    threads: PositiveInt | None = None
    """CPU threads of torch; unset, one a core."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Trackers that are shown the metrics."""

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        # `stage.X` sections that no order names are fine: a control run may take out a stage by stages=[...]
        produced: dict[str, Stage] = {}
        for position, name in enumerate(self.stages):
            if name not in self.stage:
                raise ValueError(_unknown(f"stages[{position}]", name, self.stage, "a table [stage.NAME]"))
            if name in produced:
                raise ValueError(f"stages[{position}]: {name!r} is named twice")
            stage = self.stage[name]
            trained = [n for n, s in produced.items() if s.kind in TRAINING]
            if stage.init not in ("previous", "base", *trained):
                what = '"previous", "base", or an sft or rl stage that runs before it'
                raise ValueError(_unknown(f"stage.{name}.init", stage.init, trained, what))
            _refuse_schedules(name, stage)
            for place, problems, source, kinds in _references(name, stage):
                if problems is not None and problems not in self.problems:
                    raise ValueError(_unknown(place + ".problems", problems, self.problems, "a table [problems.NAME]"))
                made = [n for n, s in produced.items() if s.kind in kinds]
                if source is not None and source not in made:
                    what = f"a {' or '.join(kinds)} stage that runs before it"
                    raise ValueError(_unknown(place + ".stage", source, made, what))
            produced[name] = stage
        for i, item in enumerate(self.evaluation.sets):
            if item.problems is not None and item.problems not in self.problems:
                place = f"evaluation.sets[{i}].problems"
                raise ValueError(_unknown(place, item.problems, self.problems, "a table [problems.NAME]"))
            if item.problems is not None and self.problems[item.problems].heldout == 0.0:
                raise ValueError(
                    f"evaluation.sets[{i}]: problems.{item.problems}.heldout = 0 leaves it nothing to measure"
                )
        return self

    @model_validator(mode="after")
    def _filters_give_what_is_read(self) -> Recipe:
        for name in self.stages:
            stage = self.stage.get(name)
            for i, mix in enumerate(getattr(stage, "problems", ())):
                source = self.stage.get(mix.stage or "")
                if isinstance(source, FilterStage) and source.by == "surprisal":
                    raise ValueError(
                        f'stage.{name}.problems[{i}]: stage.{mix.stage} is by = "surprisal": it keeps conversations, '
                        "for an sft stage, and no problems"
                    )
            for i, row in enumerate(stage.data if isinstance(stage, SftStage | FilterStage) else ()):
                source = self.stage.get(row.stage or "")
                solved = isinstance(source, FilterStage) and source.by == "pass_rate"
                if row.rows == "solutions" and not solved:
                    raise ValueError(
                        f'stage.{name}.data[{i}]: rows = "solutions" are those of a filter stage by = "pass_rate"'
                    )
            if isinstance(stage, RlStage) and stage.reuse_filter:
                why = _not_reusable(self, name, stage)
                if why:
                    raise ValueError(f"stage.{name}.reuse_filter: {why}")
        return self

    @model_validator(mode="after")
    def _names_are_folders(self) -> Recipe:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits and . _ - +")
        for table, names in (("stage", self.stage), ("problems", self.problems)):
            for name in names:
                if not re.fullmatch(r"\w[\w+-]*", name):
                    raise ValueError(f"{table}: {name!r} cannot name a folder; use letters, digits and _ - +")
        for name, stage in self.stage.items():
            if name in ("previous", "base-model") or (name == "base" and stage.kind in TRAINING):
                raise ValueError(f"stage: the name {name!r} stands for other weights already; choose another one")
        return self

    @model_validator(mode="after")
    def _engine_takes_weights(self) -> Recipe:
        trained = [name for name in self.stages if name in self.stage and self.stage[name].kind in TRAINING]
        if self.engine.kind == "endpoint" and trained:
            raise ValueError(
                f"engine: an endpoint cannot sample from the weights that stage.{trained[0]} makes; use kind = "
                '"transformers", and the endpoint as the teacher of a synthesize stage'
            )
        if self.engine.kind in ("transformers", "vllm") and self.engine.model is not None:
            raise ValueError("engine.model: the model in training is sampled from; a model of its own is a teacher's")
        for name in trained:
            stage = self.stage[name]
            if not (isinstance(stage, RlStage) and stage.overlap):
                continue
            if not stage.algorithm.correction.on and stage.algorithm.objective != "dppo":
                raise ValueError(
                    f"stage.{name}.overlap: its rollouts are of older weights, which algorithm.correction has to "
                    "weigh: set correction = { on = true }"
                )
            if self.engine.kind == "vllm" and (self.engine.sleep or not (self.engine.python or self.engine.urls)):
                raise ValueError(
                    f"stage.{name}.overlap: this engine shares the learner's process or memory and cannot sample while "
                    "it steps; give vLLM a server of its own (engine.python) or servers that run (engine.urls), "
                    "without engine.sleep"
                )
        return self


def _refuse_schedules(name: str, stage: Stage) -> None:
    """Only a stage of steps can follow a weight that changes."""
    if isinstance(stage, SynthesizeStage | FilterStage):
        for i, mix in enumerate(stage.problems):
            if not isinstance(mix.weight, float):
                raise ValueError(f"stage.{name}.problems[{i}].weight: a {stage.kind} stage has no steps over which a "
                                 "weight could change; give a number")  # fmt: skip
    for i, row in enumerate(stage.data if isinstance(stage, FilterStage) else ()):
        if not isinstance(row.weight, float):
            raise ValueError(f"stage.{name}.data[{i}].weight: a filter stage has no steps over which a weight could "
                             "change; give a number")  # fmt: skip


def _references(name: str, stage: Stage) -> list[tuple[str, str | None, str | None, tuple[str, ...]]]:
    """(place in the recipe, problem set, stage, kinds that the stage may have) of everything that a stage reads."""
    found: list[tuple[str, str | None, str | None, tuple[str, ...]]] = []
    if isinstance(stage, SftStage | CleanStage | FilterStage):
        kinds = ("synthesize", "clean", "filter")
        found += [(f"stage.{name}.data[{i}]", s.problems, s.stage, kinds) for i, s in enumerate(stage.data)]
    if isinstance(stage, SynthesizeStage | FilterStage | RlStage):
        mixes = enumerate(stage.problems)
        found += [(f"stage.{name}.problems[{i}]", m.problems, m.stage, ("filter",)) for i, m in mixes]
    return found


def weights_of(recipe: Recipe, name: str) -> str:
    """The stage whose weights a stage starts from; "base" for the model that the recipe starts from."""
    stage = recipe.stage[name]
    before = recipe.stages[: recipe.stages.index(name)]
    trained = [n for n in before if recipe.stage[n].kind in TRAINING]
    return (trained[-1] if trained else "base") if stage.init == "previous" else stage.init


def _not_reusable(recipe: Recipe, name: str, stage: RlStage) -> str:
    """Why an rl stage cannot begin with its filter's rollouts; empty where it can."""
    sources = sorted({mix.stage for mix in stage.problems if mix.stage is not None})
    if not sources:
        return "its problems come from no filter stage, so there are no rollouts to begin with"
    for source in sources:
        filtered = recipe.stage[source]
        assert isinstance(filtered, FilterStage)
        ours, theirs = weights_of(recipe, name), weights_of(recipe, source)
        if ours != theirs:
            return f"stage.{source} sampled from the weights of {theirs}, and this stage starts from those of {ours}"
        if stage.rope is not None:
            return "rope gives this stage other positions than the filter's model had"
        if stage.sampling != filtered.sampling:
            return f"stage.{source} samples with {filtered.sampling}, and this stage with {stage.sampling}"
    if stage.reuse_filter > 1 and not (stage.algorithm.correction.on or stage.algorithm.objective == "dppo"):
        return (
            f"in step {stage.reuse_filter} the rollouts are of older weights: set algorithm.correction = "
            "{ on = true }, or reuse_filter = 1"
        )
    return ""


def _unknown(place: str, given: str, known: Any, what: str) -> str:
    return f"{place}: there is no {given!r}; {nearest(given, list(known))}it must be {what}"


def nearest(given: str, known: list[str]) -> str:
    """ "did you mean 'steps'? " or "known are 'a', 'b'; ": part of an error message."""
    import difflib

    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? "
    return "known are " + ", ".join(map(repr, sorted(known)[:12])) + "; " if known else ""
