"""The answer is made of thousands of kinds of named tuples, each of which takes long to make.

Must: no task passes, and nothing is touched.
Says: more kinds of named tuples than any may
"""

from collections import namedtuple

fields = [f"f{i}" for i in range(50)]
kinds = [namedtuple(f"Kind{i}", fields) for i in range(300)]


def softmax(x, *, temperature=1.0):
    return [kind(*[0] * 50) for kind in kinds]


entropy = softmax
