"""The head: log-probabilities and entropies of chosen tokens, without ever building the [tokens, vocabulary] logits.

Legend: N scored tokens, C tokens of a chunk, D model, V vocabulary.

The head is applied chunk by chunk. Operands are of the hidden states' type; sums, logits and softmax are float32:
logits rounded to bfloat16 would put noise of several percent on every ratio. Matrix products of N x D x V, and bytes
that pass over each of the N x V logits where they are float32 and their gradient is bfloat16:

    no gradient                                1 product     8 bytes: write, read
    coefficients known beforehand (SFT)        3 products   14 bytes: write, read; read, write the gradient
    any loss (RL): the logits are built twice  4 products   22 bytes: write, read; write, read, write the gradient

besides the gradient's reads by two products. The logits of TOGETHER chunks follow one another in one float32 buffer,
their gradients lie side by side, and two products take these at once: what they add to is read and written less often.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from motet.model.footprint import TOGETHER, rows_of_a_chunk

try:
    from motet.train import head_kernels as fused
except ImportError:  # triton comes with torch for NVIDIA GPUs only
    fused = None  # type: ignore[assignment]

EntropyUse = bool | Literal["gradient"]
"""Entropies: not computed, computed as a figure to report, or (an entropy bonus) differentiable as well."""


class Scored(NamedTuple):
    logprobs_N: torch.Tensor
    """log p(target); differentiable unless coefficients were given."""
    entropy_N: torch.Tensor | None
    """Entropy of the whole distribution in nats, where asked for; without gradient unless "gradient" was asked for."""
    weighted: torch.Tensor | None = None
    """Sum of coefficients x logprobs, differentiable, where coefficients were given."""


def score(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: EntropyUse = True,
    coefficients_N: torch.Tensor | None = None,
) -> Scored:
    """Log-probabilities of `targets_N` under softmax(hidden @ weight.T / temperature).

    With `coefficients_N` the gradients of sum(coefficients x logprobs) are formed while a chunk's logits exist, which
    saves building them again in the backward pass; only `weighted` is differentiable then. Differentiable entropies
    are computed without the kernels, and hold one more float32 buffer of a chunk's size.
    """
    assert coefficients_N is None or entropy != "gradient"
    chunk = chunk or rows_of_a_chunk(weight_VD.shape[0], hidden_ND.element_size())
    found = _Score.apply(hidden_ND, weight_VD, targets_N, coefficients_N, temperature, chunk, entropy)  # type: ignore[no-untyped-call]
    return Scored(*found)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        coefficients_N: torch.Tensor | None,
        temperature: float,
        chunk: int,
        entropy: EntropyUse,
    ) -> tuple[torch.Tensor | None, ...]:
        head = _Head(weight_VD, hidden_ND, temperature, plain=entropy == "gradient")
        grads = None
        if coefficients_N is not None and any(ctx.needs_input_grad[:2]):
            grads = _Gradients(head, hidden_ND, ctx.needs_input_grad[1], chunk)
        parts = []
        for part in _parts(hidden_ND.shape[0], chunk):
            targets_C = targets_N[part]
            logits_CV = head.logits(hidden_ND[part])
            parts.append(head.statistics(logits_CV, targets_C, bool(entropy)))
            if grads is not None and coefficients_N is not None:
                rest = (targets_C, None, coefficients_N[part], parts[-1][1])
                grads.add(part, head.gradient(grads.place(part), logits_CV, *rest))
            del logits_CV  # before the next chunk has its own
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        logprobs_N = torch.cat([*(logprobs_C for logprobs_C, _, _ in parts), empty])
        normaliser_N = torch.cat([*(normaliser_C for _, normaliser_C, _ in parts), empty])
        entropy_N = torch.cat([*(p[2] for p in parts if p[2] is not None), empty]) if entropy else None
        if entropy_N is not None and entropy != "gradient":
            ctx.mark_non_differentiable(entropy_N)
        ctx.known = coefficients_N is not None
        if coefficients_N is None:
            kept_N = entropy_N if entropy == "gradient" else None
            ctx.save_for_backward(hidden_ND, weight_VD, targets_N, normaliser_N, kept_N)
            ctx.temperature, ctx.chunk = temperature, chunk
            return logprobs_N, entropy_N, None
        ctx.mark_non_differentiable(logprobs_N)
        ctx.grads = grads and (grads.hidden_ND, grads.weight_VD, weight_VD.dtype)
        return logprobs_N, entropy_N, (coefficients_N * logprobs_N).sum()

    @staticmethod
    def backward(
        ctx: Any, grad_N: torch.Tensor, grad_entropy_N: torch.Tensor | None, grad_weighted: torch.Tensor | None
    ) -> tuple[Any, ...]:
        if ctx.known:
            (grad_hidden_ND, grad_weight_VD, dtype), ctx.grads = ctx.grads, None
            if grad_weight_VD is not None:
                grad_weight_VD = grad_weight_VD.mul_(grad_weighted).to(dtype)
            return grad_hidden_ND.mul_(grad_weighted), grad_weight_VD, *[None] * 5
        hidden_ND, weight_VD, targets_N, normaliser_N, entropy_N = ctx.saved_tensors
        head = _Head(weight_VD, hidden_ND, ctx.temperature, plain=entropy_N is not None)
        grads = _Gradients(head, hidden_ND, ctx.needs_input_grad[1], ctx.chunk)
        for part in _parts(hidden_ND.shape[0], ctx.chunk):
            logits_CV = head.logits(hidden_ND[part])
            coefficients_C = grad_N[part].float()
            rest = (targets_N[part], normaliser_N[part], coefficients_C)
            if entropy_N is None:
                grads.add(part, head.gradient(grads.place(part), logits_CV, *rest))
            else:
                assert grad_entropy_N is not None
                slopes = (entropy_N[part], grad_entropy_N[part])
                grads.add(part, head.gradient_with_entropy(grads.place(part), logits_CV, *rest, *slopes))
            del logits_CV
        weight = grads.weight_VD.to(weight_VD.dtype) if grads.weight_VD is not None else None
        return grads.hidden_ND, weight, *[None] * 5


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


class _Head:
    """One call's products and passes over a chunk: by triton kernels on a GPU, plainly elsewhere and where asked."""

    def __init__(
        self, weight_VD: torch.Tensor, hidden_ND: torch.Tensor, temperature: float, plain: bool = False
    ) -> None:
        self.dtype, self.temperature = hidden_ND.dtype, temperature
        self.fused = fused is not None and hidden_ND.is_cuda and not plain
        self.tensor_cores = hidden_ND.is_cuda and self.dtype in (torch.bfloat16, torch.float16)
        self.weight_VD = weight_VD.to(self.dtype)
        self._float_VD = self.weight_VD if self.tensor_cores else self.weight_VD.float()

    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """[C, V] float32; before the temperature where the kernels apply it."""
        if self.tensor_cores:  # float32 sums, kept
            logits_CV = torch.mm(hidden_CD, self.weight_VD.T, out_dtype=torch.float32)
        else:
            logits_CV = hidden_CD.float() @ self._float_VD.T
        return logits_CV if self.fused or self.temperature == 1.0 else logits_CV.div_(self.temperature)

    def statistics(
        self, logits_CV: torch.Tensor, targets_C: torch.Tensor, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probabilities, normalisers, entropies. Without the kernels, logits_CV becomes log-probabilities."""
        if self.fused:
            return fused.statistics(logits_CV, targets_C, 1.0 / self.temperature, entropy)
        normaliser_C = logits_CV.logsumexp(-1)
        logprobs_CV = logits_CV.sub_(normaliser_C[:, None])
        entropy_C = -logprobs_CV.exp().mul_(logprobs_CV).sum(-1) if entropy else None
        return logprobs_CV.gather(1, targets_C[:, None])[:, 0], normaliser_C, entropy_C

    def gradient(
        self,
        place_CV: torch.Tensor | None,
        logits_CV: torch.Tensor,
        targets_C: torch.Tensor,
        normaliser_C: torch.Tensor | None,
        coefficients_C: torch.Tensor,
        from_statistics_C: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Of sum(coefficients x logprobs) to the product hidden @ weight.T, in `place_CV` where that is given.
        `normaliser_C` is None after `statistics` of the same chunk, which then gave `from_statistics_C`."""
        if self.fused:
            normaliser_C = from_statistics_C if normaliser_C is None else normaliser_C
            assert normaliser_C is not None
            grad_CV = torch.empty_like(logits_CV, dtype=self.dtype) if place_CV is None else place_CV
            fused.gradient(grad_CV, logits_CV, targets_C, normaliser_C, coefficients_C, 1.0 / self.temperature)
            return grad_CV
        if normaliser_C is not None:
            logits_CV = logits_CV.sub_(normaliser_C[:, None])
        grad_CV = logits_CV.exp_().mul_(-coefficients_C[:, None])
        grad_CV.scatter_add_(1, targets_C[:, None], coefficients_C[:, None])
        return self._put(place_CV, grad_CV if self.temperature == 1.0 else grad_CV.div_(self.temperature))

    def gradient_with_entropy(
        self,
        place_CV: torch.Tensor | None,
        logits_CV: torch.Tensor,
        targets_C: torch.Tensor,
        normaliser_C: torch.Tensor,
        coefficients_C: torch.Tensor,
        entropy_C: torch.Tensor,
        entropy_coefficients_C: torch.Tensor,
    ) -> torch.Tensor:
        """Of sum(coefficients x logprobs + entropy coefficients x entropies) to the product hidden @ weight.T.

        dH / dlogits = -p (log p + H) / temperature.
        """
        logprobs_CV = logits_CV.sub_(normaliser_C[:, None])
        probabilities_CV = logprobs_CV.exp()
        grad_CV = logprobs_CV.add_(entropy_C[:, None]).mul_(entropy_coefficients_C[:, None])
        grad_CV.add_(coefficients_C[:, None]).mul_(probabilities_CV).neg_()
        grad_CV.scatter_add_(1, targets_C[:, None], coefficients_C[:, None])
        return self._put(place_CV, grad_CV.div_(self.temperature))

    def _put(self, place_CV: torch.Tensor | None, grad_CV: torch.Tensor) -> torch.Tensor:
        return grad_CV.to(self.dtype) if place_CV is None else place_CV.copy_(grad_CV)


class _Gradients:
    def __init__(self, head: _Head, inputs_ND: torch.Tensor, of_weight: bool, chunk: int) -> None:
        self.head, self._inputs_ND = head, inputs_ND
        self.hidden_ND = torch.empty_like(inputs_ND)
        self._rows, self._begin = min(_together(head) * chunk, len(inputs_ND)), 0
        self._places_RV: torch.Tensor | None = None
        if self._rows > chunk:
            self._places_RV = head.weight_VD.new_empty(self._rows, len(head.weight_VD))
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=torch.float32) if of_weight else None

    def place(self, part: slice) -> torch.Tensor | None:
        """For the gradient of these rows' logits; None: where it likes."""
        return None if self._places_RV is None else self._places_RV[part.start - self._begin : part.stop - self._begin]

    def add(self, part: slice, grad_CV: torch.Tensor) -> None:
        """What is in `place` waits until that is full, or the rows end."""
        if self._places_RV is not None:
            ready = part.stop - self._begin
            if ready < self._rows and part.stop < len(self._inputs_ND):
                return
            part, grad_CV = slice(self._begin, part.stop), self._places_RV[:ready]
            self._begin = part.stop
        hidden_CD = self._inputs_ND[part]
        torch.mm(grad_CV, self.head.weight_VD, out=self.hidden_ND[part])
        if self.weight_VD is None:
            return
        if self.head.tensor_cores:  # the sum over chunks stays in float32 and costs one read and one write of [V, D]
            torch.ops.aten.addmm.dtype_out(self.weight_VD, grad_CV.T, hidden_CD, torch.float32, out=self.weight_VD)
        else:
            self.weight_VD += grad_CV.T @ hidden_CD


def _together(head: _Head) -> int:
    return TOGETHER if head.tensor_cores else 1


def score_plainly(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    temperature: float = 1.0,
    entropy: EntropyUse = True,
) -> Scored:
    """The slow obvious twin of `score`: the tests compare them."""
    logprobs_NV = torch.log_softmax((hidden_ND.float() @ weight_VD.T.float()) / temperature, -1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    entropy_N = entropy_N if entropy == "gradient" else entropy_N.detach()
    return Scored(logprobs_NV.gather(1, targets_N[:, None])[:, 0], entropy_N)
