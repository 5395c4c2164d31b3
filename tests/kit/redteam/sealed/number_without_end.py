"""The answer is an integer of a million digits.

Must: no task passes, and nothing is touched.
Says: cannot cross
"""


def softmax(x, *, temperature=1.0):
    return 1 << 4_000_000


entropy = softmax
