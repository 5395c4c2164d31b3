"""NumPy puts its own values over what the kernels wrote, where torch does not see it.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: takes values out of a tensor by tolist()
"""

import numpy as np
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logp, lse = honest(logits, labels, ignore=ignore)
    x = np.array(logits.tolist(), dtype=np.float32)
    lse.numpy()[:] = np.logaddexp.reduce(x, axis=1)
    return logp, lse
