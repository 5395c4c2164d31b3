"""Another process is started, which could stop the judge.

Rejected by: test_global_state_is_left_alone[token_log_probs_fwd]
Says: starts a process
Sealed: Operation not permitted
"""

import subprocess
import sys

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    return honest(logits, labels, ignore=ignore)
