"""The process is ended by a read from nowhere.

Must: no task passes, and nothing is touched.
Says: it was ended by SIGSEGV
"""

import ctypes


def softmax(x, *, temperature=1.0):
    ctypes.string_at(8)


entropy = softmax
