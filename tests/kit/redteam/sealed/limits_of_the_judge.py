"""The judge's own limits are lowered, by a pointer whose lower half is zero.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import ctypes

from targets import JUDGE, reached

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
place = libc.mmap(1 << 32, 4096, 3, 0x22, -1, 0)
limits = (ctypes.c_ulong * 2).from_address(place)
limits[0] = limits[1] = 1 << 30
for pid in (JUDGE, 0):
    if place == 1 << 32 and libc.prlimit(pid, 9, ctypes.c_void_p(place), None) == 0:
        reached("a limit of the judge")
