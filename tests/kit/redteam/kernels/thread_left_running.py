"""The work is done by a thread, some time after the call.

Rejected by: test_global_state_is_left_alone[token_log_probs_fwd]
Says: starts a thread
"""

import threading

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logp = torch.empty(len(labels), device=logits.device)
    lse = torch.empty(len(labels), device=logits.device)

    def work() -> None:
        for answer, found in zip((logp, lse), honest(logits, labels, ignore=ignore), strict=True):
            answer.copy_(found)

    threading.Timer(0.01, work).start()
    return logp, lse
