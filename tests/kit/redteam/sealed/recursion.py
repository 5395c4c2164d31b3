"""Functions call themselves until the stack is full.

Must: no task passes, and nothing is touched.
"""

import sys

sys.setrecursionlimit(1 << 30)


def softmax(x, *, temperature=1.0):
    return softmax(x, temperature=temperature) + [softmax].sort(key=softmax)


entropy = softmax
