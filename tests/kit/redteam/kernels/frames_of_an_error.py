"""The callers are reached through the traceback of an error of one's own.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: looks at who calls it
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    try:
        raise RuntimeError
    except RuntimeError as error:
        frame = error.__traceback__.tb_frame.f_back
        while frame is not None and "wanted" not in frame.f_locals:
            frame = frame.f_back
    return frame.f_locals["wanted"] if frame else honest(logits, labels, ignore=ignore)
