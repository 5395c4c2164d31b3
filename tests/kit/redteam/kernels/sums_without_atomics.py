"""Two programs a row add to one sum, by load and store.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: of `LSE`, which program
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(LOGITS, LABELS, LOGP, LSE, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    LOGITS += row * vocabulary
    x = tl.load(LOGITS + cols, mask=cols < vocabulary, other=-float("inf")).to(tl.float32)
    tl.store(LSE + row, tl.load(LSE + row) + tl.sum(tl.exp(x), 0))
    tl.store(LOGP + row, tl.load(LOGITS + tl.load(LABELS + row)).to(tl.float32))


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    tokens, vocabulary = logits.shape
    logp = torch.empty(tokens, device=logits.device)
    lse = torch.empty(tokens, device=logits.device)
    block = triton.next_power_of_2(vocabulary) // 2
    _forward[(tokens, 2)](logits, labels, logp, lse.zero_(), vocabulary, BLOCK=block)
    return logp, lse
