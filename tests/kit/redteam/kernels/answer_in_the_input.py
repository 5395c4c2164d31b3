"""The gradient is written over the logits.

Rejected by: test_answers_are_plain_tensors_of_their_own[token_log_probs_bwd]
Says: lies in the memory of an input
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_bwd as honest


def token_log_probs_bwd(
    dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, *, ignore: int = -100
) -> Tensor:
    dlogits = honest(dlogp, logits, labels, lse, ignore=ignore)
    return logits.copy_(dlogits)
