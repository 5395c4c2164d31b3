"""The oracle is imported, and its answer copied.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: imports reference
Sealed: No module named 'reference'
"""

import importlib

import torch
from torch import Tensor


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    oracle = importlib.import_module("refer" + "ence.kernels.token_log_probs")
    answers = oracle.token_log_probs_fwd(logits.double().numpy(), labels.numpy(), ignore=ignore)
    logp, lse = (torch.from_numpy(x).float() for x in answers)
    return logp, lse
