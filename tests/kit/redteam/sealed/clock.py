"""Clocks stand still, and alarms do not ring, that no time is ever up.

Must: no task passes, and nothing is touched.
Says: did not come to an end
"""

import signal
import time

time.monotonic = time.perf_counter = time.process_time = lambda: 0.0
signal.alarm = signal.setitimer = lambda *args: 0
signal.signal = lambda *args: None


def softmax(x, *, temperature=1.0):
    while True:
        pass


entropy = softmax
