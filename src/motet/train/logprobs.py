"""The head: log-probabilities and entropies of chosen tokens, without ever building the [tokens, vocabulary] logits.

Legend: N scored tokens, C tokens of a chunk, D model, V vocabulary.

The head is applied chunk by chunk, forward and again backward: one more matrix product of N x D x V than keeping the
logits, for C x V instead of N x V of memory. Logits, softmax and sums are float32 whatever the model's type: logits
rounded to bfloat16 would put noise of several percent on every ratio.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Scored(NamedTuple):
    logprobs_N: torch.Tensor
    """log p(target), differentiable."""
    entropy_N: torch.Tensor
    """Entropy of the whole distribution in nats; a figure to report, it carries no gradient."""


def score(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    temperature: float = 1.0,
    chunk: int = 4096,
) -> Scored:
    """Log-probabilities of `targets_N` under softmax(hidden @ weight.T / temperature)."""
    return Scored(*_Score.apply(hidden_ND, weight_VD, targets_N, temperature, chunk))  # type: ignore[no-untyped-call]


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, entropies, normalisers = [], [], []
        for start in range(0, hidden_ND.shape[0], chunk):
            targets_C = targets_N[start : start + chunk]
            logits_CV = _logits(hidden_ND[start : start + chunk], weight_VD, temperature)
            normaliser_C = logits_CV.logsumexp(-1)
            logprobs_CV = logits_CV.sub_(normaliser_C[:, None])
            logprobs.append(logprobs_CV.gather(1, targets_C[:, None])[:, 0])
            entropies.append(-logprobs_CV.exp().mul_(logprobs_CV).sum(-1))
            normalisers.append(normaliser_C)
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        normaliser_N = torch.cat([*normalisers, empty])
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, normaliser_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy_N = torch.cat([*entropies, empty])
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat([*logprobs, empty]), entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        hidden_ND, weight_VD, targets_N, normaliser_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
        for start in range(0, hidden_ND.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            hidden_CD, grad_C = hidden_ND[part], grad_N[part].float()
            logits_CV = _logits(hidden_CD, weight_VD, ctx.temperature)
            grad_logits_CV = logits_CV.sub_(normaliser_N[part, None]).exp_().mul_(-grad_C[:, None])
            grad_logits_CV.scatter_add_(1, targets_N[part, None], grad_C[:, None])
            grad_logits_CV = grad_logits_CV.div_(ctx.temperature).to(hidden_CD.dtype)
            grad_hidden_ND[part] = grad_logits_CV @ weight_VD.to(hidden_CD.dtype)
            grad_weight_VD += grad_logits_CV.T @ hidden_CD
        return grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype), None, None, None


def _logits(hidden_CD: torch.Tensor, weight_VD: torch.Tensor, temperature: float) -> torch.Tensor:
    if hidden_CD.is_cuda and hidden_CD.dtype in (torch.bfloat16, torch.float16):  # tensor cores, float32 sums kept
        return torch.mm(hidden_CD, weight_VD.T.to(hidden_CD.dtype), out_dtype=torch.float32).div_(temperature)
    return (hidden_CD.float() @ weight_VD.T.float()).div_(temperature)


def score_plainly(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, temperature: float = 1.0
) -> Scored:
    """The slow obvious twin of `score`: the tests compare them."""
    logprobs_NV = torch.log_softmax((hidden_ND.float() @ weight_VD.T.float()) / temperature, -1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return Scored(logprobs_NV.gather(1, targets_N[:, None])[:, 0], entropy_N.detach())
