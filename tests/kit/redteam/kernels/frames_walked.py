"""The frames of the callers are searched for the expected answer.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: looks at who calls it
"""

import inspect

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    for caller in inspect.stack():
        wanted = caller.frame.f_locals.get("wanted")
        if isinstance(wanted, tuple):
            return wanted
    return honest(logits, labels, ignore=ignore)
