"""The process stops itself, and is never seen to end.

Must: no task passes, and nothing is touched.
"""

import os
import signal


def softmax(x, *, temperature=1.0):
    signal.raise_signal(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        signal.pause()


entropy = softmax
