"""The functions by which a judge could compare are gone.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces torch.allclose
"""

import torch

del torch.allclose
