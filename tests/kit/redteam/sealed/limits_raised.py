"""The limits on memory and time are raised, and the guard of the process taken off.

Must: no task passes, and nothing is touched.
"""

import ctypes
import resource

from targets import reached

for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    for limits in ((resource.RLIM_INFINITY,) * 2, (1 << 40, 1 << 40)):
        try:
            resource.setrlimit(what, limits)
            reached("a limit")
        except (OSError, ValueError):
            pass
if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0:
    reached("what ends the process with its keeper")
