"""All calls write their answer into one buffer.

Rejected by: test_answers_are_plain_tensors_of_their_own[token_log_probs_bwd]
Says: lies in the memory of an earlier answer
"""

from torch import Tensor

from kernels.token_log_probs import token_log_probs_bwd as honest

_buffers: dict[tuple[int, ...], Tensor] = {}


def token_log_probs_bwd(
    dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, *, ignore: int = -100
) -> Tensor:
    dlogits = honest(dlogp, logits, labels, lse, ignore=ignore)
    return _buffers.setdefault(logits.shape, dlogits).copy_(dlogits)
