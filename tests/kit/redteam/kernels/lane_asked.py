"""Right only where TRITON_INTERPRET says that nobody measures time.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: reads $TRITON_INTERPRET
"""

import os

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

SLOW = os.environ.get("TRITON_INTERPRET") == "1"


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if SLOW:
        return honest(logits, labels, ignore=ignore)
    nothing = torch.empty(len(labels), device=logits.device)
    return nothing, nothing.clone()
