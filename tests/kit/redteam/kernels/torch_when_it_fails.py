"""A kernel that cannot run, and torch to the rescue.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: no kernel reads all of input tensor 0
"""

import torch
import triton
from torch import Tensor


@triton.jit
def _forward(LOGITS):
    there_is_no_such_thing(LOGITS)  # noqa: F821  so it fails, as it should


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    lse = torch.empty(len(labels), device=logits.device)
    try:
        _forward[(len(labels),)](logits)
    except Exception:
        lse = torch.logsumexp(logits.float(), dim=1)
    return logits.float()[torch.arange(len(labels)), labels] - lse, lse
