"""The answer is a list of more parts than anybody can hold.

Must: no task passes, and nothing is touched.
Says: values cannot cross at once
"""


def softmax(x, *, temperature=1.0):
    return [[0.0] * 1000] * 10_000


entropy = softmax
