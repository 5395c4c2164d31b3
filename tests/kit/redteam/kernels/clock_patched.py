"""Time passes at half its speed.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces time.perf_counter
"""

import time

_clock = time.perf_counter
time.perf_counter = lambda: _clock() / 2
