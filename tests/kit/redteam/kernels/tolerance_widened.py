"""The judge's tolerances allow any error.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces paperlings.testing.close.TOLERANCE
"""

import sys

_allowed = sys.modules["paperlings.testing.close"].TOLERANCE
_allowed.update(dict.fromkeys(_allowed, float("inf")))
