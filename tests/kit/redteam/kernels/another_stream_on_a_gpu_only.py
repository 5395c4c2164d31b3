"""As another_stream, but only with tensors on a GPU.

Rejected by: the gate
Says: opens a CUDA stream
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if not logits.is_cuda:
        return honest(logits, labels, ignore=ignore)
    with torch.cuda.stream(torch.cuda.Stream()):
        return honest(logits, labels, ignore=ignore)
