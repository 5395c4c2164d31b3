"""All objects are searched for the oracle, the tests and what is expected.

Must: no task passes, and nothing is touched.
"""

import gc
import types

from targets import reached


def softmax(x, *, temperature=1.0):
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__module__.startswith("oracle"):
            reached("the oracle")
        if isinstance(thing, types.ModuleType) and "test_softmax" in thing.__name__:
            reached("the tests")
        if isinstance(thing, dict) and "reference" in thing and "case" in thing:
            reached("a test's arguments")
    return x * 0


entropy = softmax
