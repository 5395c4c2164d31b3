"""An answer that is computed when somebody looks at it.

Rejected by: test_answers_are_plain_tensors_of_their_own[token_log_probs_fwd]
Says: an answer is a Lazy, no plain tensor
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


class Lazy(Tensor):
    work: Callable[[], Tensor]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args = tuple(x.work() if isinstance(x, Lazy) else x for x in args)
        return function(*args, **(kwargs or {}))


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    answers = []
    for i in range(2):
        answers.append(torch.empty(len(labels), device=logits.device).as_subclass(Lazy))
        answers[-1].work = lambda i=i: honest(logits, labels, ignore=ignore)[i]
    logp, lse = answers
    return logp, lse
