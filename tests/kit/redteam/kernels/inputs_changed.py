"""The logits are set to zero, so that whoever computes the truth from them finds it right.

Rejected by: test_inputs_are_left_alone[token_log_probs_fwd]
Says: input 0 is not what it was
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logits.zero_()
    return honest(logits, labels, ignore=ignore)
