"""`[model]`, `[mesh]`, `[machine]`, `[chat]`, and what a stage may change of the model: rope, LoRA."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.parts import Part


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
    recompute: Literal["auto", "none", "matmul", "hosted", "attention", "full", "offload"] = "auto"
    """What a block computes again in the backward pass, to save memory: nothing; all but attention and matrix products;
    the same, with what is kept moved to host memory meanwhile; all but attention; everything; everything, with its
    input moved to host memory meanwhile. "auto" keeps as much as the GPU's memory allows, moves to host memory what
    can go there unseen, and keeps everything on a CPU."""
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
    def _compile_is_read(self) -> Model:
        if self.compile == "on" and self.recompute == "offload":
            raise ValueError('compile = "on" has no effect with recompute = "offload", whose blocks are not compiled')
        if self.compile == "off" and self.recompute == "hosted":
            raise ValueError(
                'recompute = "hosted" moves what compiled blocks keep; take out compile = "off", or set "matmul"'
            )
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
    silence_seconds: PositiveInt = 3600
    """The first process samples, judges and writes as long as it takes, and the others wait. So long without a sign of
    life from it (a token, a reply, a verdict, a row) ends the run, with the stack of every process. More than an
    engine's timeout_seconds, since a reply that is waited for gives none."""


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
