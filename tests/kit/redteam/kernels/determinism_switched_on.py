"""What everybody else is timed with is made slower.

Rejected by: test_global_state_is_left_alone[token_log_probs_fwd]
Says: the call changed deterministic mode
Sealed: No usable temporary directory
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    return honest(logits, labels, ignore=ignore)
