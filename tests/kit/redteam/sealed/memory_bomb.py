"""Memory is taken until there is none.

Must: no task passes, and nothing is touched.
"""


def softmax(x, *, temperature=1.0):
    taken = []
    while True:
        taken.append(bytearray(1 << 28))


entropy = softmax
