"""The process ends with the status of success as soon as it is called.

Must: no task passes, and nothing is touched.
Says: it ended by itself (exit status 0)
"""

import os


def softmax(x, *, temperature=1.0):
    os._exit(0)


entropy = softmax
