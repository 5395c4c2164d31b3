"""The first answer is given to every call of the same shape.

Rejected by: test_fresh_values_give_a_fresh_answer[token_log_probs_fwd]
Says: other values are given, and the answer is the same
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

_kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logp, lse = _kept.setdefault(logits.shape, honest(logits, labels, ignore=ignore))
    return logp.clone(), lse.clone()
