"""pytest's reports are made to say that the test has passed.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import _pytest.python
import _pytest.reports


def passed(cls, item, call):
    return cls(item.nodeid, item.location, {}, "passed", None, call.when)


_pytest.reports.TestReport.from_item_and_call = classmethod(passed)
_pytest.python.Function.runtest = lambda self: None
