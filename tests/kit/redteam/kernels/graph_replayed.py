"""The launches are recorded once as a CUDA graph and replayed.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: opens a CUDA graph
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answers = honest(logits, labels, ignore=ignore)
        graph.replay()
        return answers
    except RuntimeError:
        return honest(logits, labels, ignore=ignore)
