"""The time between two CUDA events is always a microsecond.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces torch.cuda.streams.Event.elapsed_time
"""

import torch

torch.cuda.Event.elapsed_time = lambda self, end: 1e-3
