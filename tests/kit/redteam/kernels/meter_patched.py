"""The meter finds that everything has been read and written.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces paperlings.lanes.traffic.Record.has_read
"""

import sys

_record = sys.modules["paperlings.lanes.traffic"].Record
_record.has_read = _record.has_written = lambda self, tensor: True
