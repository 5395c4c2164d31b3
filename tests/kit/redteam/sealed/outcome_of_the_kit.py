"""The kit's own way to say that a machine cannot tell is used.

Must: no task passes, and nothing is touched.
"""

from paperlings.outcomes import unverified


def softmax(x, *, temperature=1.0):
    unverified("this machine has no GPU")


entropy = softmax
