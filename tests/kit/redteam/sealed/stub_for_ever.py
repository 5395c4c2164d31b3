"""Every function says that it is not written yet, wherever it is called.

Must: no task passes, and nothing is touched.
"""


def softmax(x, *, temperature=1.0):
    raise NotImplementedError("softmax")


def entropy(p):
    raise NotImplementedError("entropy")
