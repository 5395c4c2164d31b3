"""The last block of the last row reads on beyond the logits.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: of `LOGITS`, whose shape is
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(LOGITS, LABELS, LOGP, LSE, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    LOGITS += row * vocabulary
    x = tl.load(LOGITS + cols).to(tl.float32)
    x = tl.where(cols < vocabulary, x, -float("inf"))
    top = tl.max(x, 0)
    lse = top + tl.log(tl.sum(tl.exp(x - top), 0))
    tl.store(LOGP + row, tl.load(LOGITS + tl.load(LABELS + row)).to(tl.float32) - lse)
    tl.store(LSE + row, lse)


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    tokens, vocabulary = logits.shape
    logp = torch.empty(tokens, device=logits.device)
    lse = torch.empty(tokens, device=logits.device)
    block = triton.next_power_of_2(vocabulary)
    _forward[(tokens,)](logits, labels, logp, lse, vocabulary, BLOCK=block)
    return logp, lse
