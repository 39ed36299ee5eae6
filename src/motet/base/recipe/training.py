"""What every training stage has: optimizer, starting weights, checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.model import Lora, Rope
from motet.base.recipe.parts import Fraction, Part


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
    offload: Literal["off", "on"] = "off"
    """AdamW's moments wait in host memory while rows go forward and backward, on one GPU: 8 bytes a parameter of
    float32 weights are free meanwhile, and while an engine samples. A step takes longer by their way there and back."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop, or leave the weights as they are and go on (at most ten times in a
    row). Either way the batch is written to STAGE/nonfinite-N.jsonl."""

    @model_validator(mode="after")
    def _is_read(self) -> Optimizer:
        defaults = type(self).model_fields
        if self.kind == "adamw" and self.momentum != defaults["momentum"].default:
            raise ValueError(
                f'momentum = {self.momentum:g} is Muon\'s, and nothing reads it with kind = "adamw": betas'
            )
        if self.kind == "muon" and self.offload != "off":
            raise ValueError(f'offload = "{self.offload}" is for AdamW\'s moments, this is kind = "muon": take it out')
        if self.schedule == "constant" and self.final_ratio != defaults["final_ratio"].default:
            raise ValueError(f"final_ratio = {self.final_ratio:g} is where a cosine ends, and a constant has no end")
        return self


class StageBase(Part):
    init: str = "previous"
    """Which weights the stage starts from: "previous" (the last stage that made some), "base", or a stage's name."""
    evaluate: bool = True
    """Run the evaluation on the weights that this stage made."""
    micro_batch_tokens: PositiveInt = 16384
    """Most packed tokens in one forward and backward pass; it changes memory and speed, never the gradients."""


class TrainingStage(StageBase):
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW or Muon, and the schedule of the learning rate."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints; a killed run redoes at most this many."""
    rope: Rope | None = None
    """Rotary positions from this stage on, e.g. { kind = "yarn", positions = 65536 }; unset, the model's own."""
    lora: Lora | None = None
    """Train low-rank adapters, e.g. { rank = 16 }. They are saved in STAGE/adapter, and merged in STAGE/model."""
