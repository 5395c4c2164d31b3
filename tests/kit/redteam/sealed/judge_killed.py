"""The judge, the keeper and everybody else are sent signals.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os
import signal

from targets import JUDGE, reached

libc = ctypes.CDLL(None)
for pid in (os.getppid(), JUDGE, -1, 0, -os.getppid(), 1):
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            reached(f"the process {pid}")
        except OSError:
            pass
        if libc.tgkill(pid, pid, number) == 0 or libc.sigqueue(pid, number, None) == 0:
            reached(f"the process {pid}")
