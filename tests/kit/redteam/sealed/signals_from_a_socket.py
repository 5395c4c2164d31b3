"""The kernel is asked to signal the judge whenever the connection moves.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import ctypes
import fcntl
import os

from targets import JUDGE, reached

for pid in (JUDGE, os.getppid()):
    try:
        fcntl.fcntl(3, 10, 9)  # F_SETSIG
        fcntl.fcntl(3, 8, pid)  # F_SETOWN
        reached("a signal")
    except OSError:
        pass
if ctypes.CDLL(None).ioctl(3, 0x5452, ctypes.byref(ctypes.c_int(1))) == 0:
    reached("FIOASYNC")
