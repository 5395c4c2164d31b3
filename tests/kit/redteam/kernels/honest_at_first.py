"""Two calls are honest; all later ones are given what the second answered.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: no kernel is launched
"""

import itertools

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

_calls = itertools.count()
_kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if next(_calls) < 2 or logits.shape not in _kept:
        _kept[logits.shape] = honest(logits, labels, ignore=ignore)
    return _kept[logits.shape]
