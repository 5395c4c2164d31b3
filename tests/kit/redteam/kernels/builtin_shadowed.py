"""The judge's file finds another `isinstance` than the builtin.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces paperlings.testing.close.isinstance
"""

import sys

sys.modules["paperlings.testing.close"].isinstance = lambda value, kinds: False
