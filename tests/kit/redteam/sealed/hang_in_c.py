"""A call does not come to an end, and holds the lock of the interpreter.

Must: no task passes, and nothing is touched.
Says: did not come to an end
"""

import ctypes


def softmax(x, *, temperature=1.0):
    ctypes.PyDLL(None).sleep(10_000)


entropy = softmax
