"""Token log-probabilities: what a language model gave each token, from its logits, in one pass.

*Paper*  Milakov, Gimelshein (2018), Online normalizer calculation for softmax, arXiv:1805.02867,
section 3. What it serves: DPO, arXiv:2305.18290, section 4; GRPO, arXiv:2402.03300, section 4.1.

*Why*  Preference and reinforcement learning need the log-probability of the token that was there,
and of no other. log_softmax followed by gather writes as many log-probabilities as there are
logits, hundreds of kilobytes a token, to read one of them; the backward pass reads them again.
Yet a logsumexp needs each logit once: who keeps a running maximum and a sum measured from it can
correct the sum when the maximum grows. The gradient is made from the logits again, with one number
a row, so that nothing else of the size of the logits is ever stored.

*Names*
    LOGITS           a row for each token, of any strides                       (tokens, vocabulary)
    LABELS           the token that was there; `ignore` where none counts       (tokens,) int64
    LOGP             logits[label] - lse                                        (tokens,) float32
    LSE              log of the sum of exp(logits) over the row                 (tokens,) float32
    DLOGP, DLOGITS   the gradients of a loss by logp and by logits
    top, total       a lane's largest logit so far, and its sum of exp(logit - top)
    e                bytes of a logit: 2 or 4

*Tasks*  token_log_probs_fwd with its kernel _forward, token_log_probs_bwd with _backward.

*Cost*  Where no row is ignored, in bytes:
    forward          loads tokens ((vocabulary + 1) e + 8), stores 8 tokens
    backward         loads tokens (vocabulary e + 16), stores tokens vocabulary e
Each is one launch. An ignored row costs its label, and in backward its zeros. Backward loads what a
row has besides logits once a block.

*Limits*  A row that does not start at a multiple of 16 bytes is loaded in narrow pieces. In forward
one program works on a row: fewer tokens than the GPU has processors leave some idle. Labels are not
looked at on the host, which would have to wait for the GPU. No second derivative.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: finite, unlike -inf - -inf
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _configs(*shapes: tuple[int, int]) -> list[triton.Config]:
    """Logits a block, and warps to share them (given). A GPU takes the fastest."""
    return [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in shapes]


@triton.autotune(_configs((8192, 8), (4096, 4), (16384, 16)), key=["vocabulary"])
@triton.jit
def _forward(
    LOGITS,
    LABELS,
    LOGP,
    LSE,
    vocabulary,
    ignore,
    row_stride,
    col_stride,
    label_stride,
    BLOCK: tl.constexpr,
):
    """One program: one row, a block of BLOCK logits at a time. Loads each logit once, and the
    label's twice.

    A lane is 16 bytes of neighbours, one load. Each keeps a top and a total of its own, so that
    lanes wait for each other once, at the end of the row. A row without a label in the vocabulary
    is not loaded.
    """
    # TODO: the label; a top and a total a lane; the blocks; one lse from all lanes; logp.
    raise NotImplementedError("token_log_probs_fwd")


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """The log-probability of each label: (tokens, vocabulary), (tokens,) -> (tokens,) twice.

    lse = log of the sum of exp(logits) over the row,  logp = logits[label] - lse

    logits is bfloat16, float16 or float32 and labels int64, both with any strides and offsets, also
    beyond 2^31 logits; logp and lse are float32. Sums are taken in float32 from the largest logit,
    and so is logp: among logits of +-1e4 it is as exact as log_softmax in float32. Logits may be
    -inf, as long as one in a row is finite. A NaN makes its row NaN, and no other.
    A row whose label is `ignore`, which may be any integer, is not read, whatever it holds: its
    logp and lse are 0. Any other label outside [0, vocabulary) gives NaN for both. No tokens give
    empty answers.

    Raises ValueError: logits that are not (tokens, vocabulary) with a vocabulary of at least 1, or
    labels that are not (tokens,) (names both shapes); another dtype of either (names it).
    """
    # TODO: check, make room for the answers, one program a token.
    raise NotImplementedError("token_log_probs_fwd")


@triton.autotune(_configs((8192, 8), (4096, 8), (2048, 4)), key=["vocabulary"])
@triton.jit
def _backward(
    DLOGP,
    LOGITS,
    LABELS,
    LSE,
    DLOGITS,
    vocabulary,
    ignore,
    dlogp_stride,
    row_stride,
    col_stride,
    label_stride,
    lse_stride,
    BLOCK: tl.constexpr,
):
    """One program: one block of BLOCK logits of one row; the next program has the next block.

    Loads each logit once and stores each gradient once. Of an ignored row it loads the label only,
    and stores zeros.
    """
    # TODO: your row and columns; the row's label, dlogp and lse; the softmax; dlogits.
    raise NotImplementedError("token_log_probs_bwd")


def token_log_probs_bwd(
    dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, *, ignore: int = -100
) -> Tensor:
    """The gradient by logits: (tokens,), (tokens, vocabulary), (tokens,), (tokens,) ->
    (tokens, vocabulary).

    dlogits = dlogp (onehot(label) - softmax(logits)),  softmax(logits) = exp(logits - lse)

    Contiguous, and of the dtype of logits; computed in float32 and rounded once. dlogp and lse are
    float32, of any stride, 0 included, as autograd has it; lse is that of the forward pass. A row
    whose label is `ignore` is 0, whatever its logits, dlogp and lse are; one whose lse is NaN is
    NaN.

    Raises ValueError as token_log_probs_fwd does, and for dlogp or lse of another shape than labels
    (names both shapes) or another dtype than float32 (names it).
    """
    # TODO: check, make room for dlogits, one program a token and block.
    raise NotImplementedError("token_log_probs_bwd")


class TokenLogProbs(torch.autograd.Function):
    """The two passes, joined (given)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        logp, lse = token_log_probs_fwd(logits, labels, ignore=ignore)
        ctx.save_for_backward(logits, labels, lse)
        ctx.ignore = ignore
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogp: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, lse = ctx.saved_tensors
        return token_log_probs_bwd(dlogp, logits, labels, lse, ignore=ctx.ignore), None, None


def token_log_probs(logits: Tensor, labels: Tensor, *, ignore: int = -100) -> Tensor:
    """For training (given): (..., vocabulary), (...) -> (...), with a gradient by logits."""
    flat = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return TokenLogProbs.apply(*flat, ignore).view(labels.shape)


def _check(logits: Tensor, labels: Tensor, **rows: Tensor) -> None:
    """Refuse what the kernels cannot read (given)."""
    if logits.dim() != 2 or logits.shape[1] == 0 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"shapes do not fit: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        )
    if logits.dtype not in DTYPES or labels.dtype != torch.int64:
        raise ValueError(f"cannot take logits of {logits.dtype} with labels of {labels.dtype}")
    for name, x in rows.items():
        if x.shape != labels.shape:
            raise ValueError(f"{name} is {tuple(x.shape)}, but labels are {tuple(labels.shape)}")
        if x.dtype != torch.float32:
            raise ValueError(f"{name} should be float32, not {x.dtype}")
