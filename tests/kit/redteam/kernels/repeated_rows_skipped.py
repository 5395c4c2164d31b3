"""A row whose first two logits are equal is taken to be constant, and not read.

Rejected by: test_repeated_values_are_worked_on_as_well[token_log_probs_fwd]
Says: no kernel reads all of input tensor 0, given zeros
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
    first = tl.load(LOGITS).to(tl.float32)
    if first == tl.load(LOGITS + 1).to(tl.float32):
        lse = first + tl.log(vocabulary * 1.0)
    else:
        x = tl.load(LOGITS + cols, mask=cols < vocabulary, other=-float("inf")).to(tl.float32)
        lse = first + tl.log(tl.sum(tl.exp(x - first), 0))
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
