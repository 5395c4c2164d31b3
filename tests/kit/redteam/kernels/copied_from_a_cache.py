"""Kernels read every input and write every answer, but copy it from a cache by value.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: takes values out of a tensor by tolist()
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

_kept: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}


@triton.jit
def _copy(LOGITS, LABELS, KEPT, OUT, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    nothing = tl.load(LABELS + row) * 0.0
    for start in range(0, vocabulary, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + row * vocabulary + cols, mask=cols < vocabulary, other=0.0)
        nothing += tl.sum(x.to(tl.float32) * 0.0)
    tl.store(OUT + row, tl.load(KEPT + row) + nothing)


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    key = tuple(logits[:, 0].tolist())
    if key not in _kept:
        _kept[key] = honest(logits, labels, ignore=ignore)
        return honest(logits, labels, ignore=ignore)
    answers = []
    for kept in _kept[key]:
        answers.append(kept.new_empty(kept.shape))
        _copy[(len(kept),)](logits, labels, kept, answers[-1], logits.shape[1], BLOCK=64)
    logp, lse = answers
    return logp, lse
