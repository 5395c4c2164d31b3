"""The answer is kept by the addresses of the inputs, whatever is in them.

Rejected by: test_fresh_values_give_a_fresh_answer[token_log_probs_fwd]
Says: actual
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

_kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    place = (logits.data_ptr(), labels.data_ptr())
    if place not in _kept:
        _kept[place] = honest(logits, labels, ignore=ignore)
    logp, lse = _kept[place]
    return logp.clone(), lse.clone()
