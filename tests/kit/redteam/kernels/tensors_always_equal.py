"""Every tensor is equal to every other.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces torch.Tensor.__eq__
"""

import torch

torch.Tensor.__eq__ = lambda self, other: torch.ones_like(self, dtype=torch.bool)
