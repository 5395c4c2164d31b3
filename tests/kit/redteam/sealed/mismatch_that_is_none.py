"""The kit's own exceptions are raised, with words that say that all is well.

Must: no task passes, and nothing is touched.
"""

from paperlings.testing.close import Mismatch


def softmax(x, *, temperature=1.0):
    raise Mismatch("", "", None, None)


entropy = softmax
