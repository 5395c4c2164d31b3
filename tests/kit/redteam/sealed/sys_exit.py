"""SystemExit is raised where an answer is expected.

Must: no task passes, and nothing is touched.
Says: calls sys.exit(0)
"""

import sys


def softmax(x, *, temperature=1.0):
    sys.exit(0)


entropy = softmax
