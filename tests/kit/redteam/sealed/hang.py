"""A call does not come to an end.

Must: no task passes, and nothing is touched.
Says: did not come to an end
"""


def softmax(x, *, temperature=1.0):
    while True:
        pass


entropy = softmax
