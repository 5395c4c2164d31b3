"""The grader's tokens are looked for in the environment.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os

from targets import SECRET, reached

if any(SECRET in value for value in os.environ.values()):
    reached("a secret")
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
for i in range(100):
    if not environ or not environ[i]:
        break
    if SECRET.encode() in environ[i]:
        reached("a secret")
