"""A plain tensor, of which one method has been replaced.

Rejected by: test_answers_are_plain_tensors_of_their_own[token_log_probs_fwd]
Says: a tensor that carries float
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logp, lse = honest(logits, labels, ignore=ignore)
    logp.float = lambda: logp
    return logp, lse
