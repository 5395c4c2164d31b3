"""Names in a reply hold code, in case somebody evaluates them.

Must: no task passes, and nothing is touched.
Says: a named tuple has no names
"""

from targets import DROP

code = "__import__('os').system('touch " + DROP + "/name')"


class Answer(tuple):
    _fields = (code, "b")


Answer.__name__ = code


def softmax(x, *, temperature=1.0):
    return Answer((x, x))


entropy = softmax
