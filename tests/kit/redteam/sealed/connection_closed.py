"""The connection is closed, and the process lives on.

Must: no task passes, and nothing is touched.
Says: the process that runs it has ended
"""

import os


def softmax(x, *, temperature=1.0):
    os.close(3)
    while True:
        pass


entropy = softmax
