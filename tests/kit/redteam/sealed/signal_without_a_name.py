"""The process ends by a signal for which Python has no name.

Must: no task passes, and nothing is touched.
Says: it was ended by signal 42
"""

import os
import signal


def softmax(x, *, temperature=1.0):
    signal.raise_signal(42)
    os.kill(os.getpid(), 42)


entropy = softmax
