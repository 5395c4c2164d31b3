"""As lane_asked, by way of triton's own settings.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: reads $TRITON_INTERPRET
"""

import torch
import triton
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if triton.knobs.runtime.interpret:
        return honest(logits, labels, ignore=ignore)
    nothing = torch.empty(len(labels), device=logits.device)
    return nothing, nothing.clone()
