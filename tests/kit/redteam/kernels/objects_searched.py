"""All tensors there are get searched for one that could be the expected answer.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: goes through all objects
"""

import gc

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    for x in gc.get_objects():
        if type(x) is tuple and len(x) == 2 and type(x[0]) is Tensor and x[0].shape == labels.shape:
            return x
    return honest(logits, labels, ignore=ignore)
