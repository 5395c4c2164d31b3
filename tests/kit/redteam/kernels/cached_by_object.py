"""The answer is kept by the tensors themselves, until torch says that one was written to.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: no kernel is launched
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest

_kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    version = (id(logits), logits._version, id(labels), labels._version)
    if version not in _kept:
        _kept[version] = honest(logits, labels, ignore=ignore)
    return _kept[version]
