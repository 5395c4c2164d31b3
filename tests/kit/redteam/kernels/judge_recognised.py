"""A kernel only where pytest has been imported. Nobody sees this being asked.

Rejected by: test_forward_compiles
Says: launches no kernel
"""

import sys

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if "pytest" in sys.modules:
        return honest(logits, labels, ignore=ignore)
    nothing = torch.empty(len(labels), device=logits.device)
    return nothing, nothing.clone()
