"""The answer is an object that is equal to everything, of every shape.

Must: no task passes, and nothing is touched.
Says: expected a Tensor
"""


class Everything:
    def __eq__(self, other):
        return True

    __hash__ = None

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self


def softmax(x, *, temperature=1.0):
    return Everything()


entropy = softmax
