"""Errors are raised that are called as those by which the kit says that nothing is wrong.

Must: no task passes, and nothing is touched.
Says: Waiting
"""

names = ["TimeLimit", "KitFault", "Unverified", "Skipped", "Unwritten", "Waiting", "Gone", "Exit"]
count = 0


def softmax(x, *, temperature=1.0):
    global count
    count += 1
    raise type(names[count % len(names)], (BaseException,), {"question": "", "timed_out": True})("")


def entropy(p):
    raise type("Waiting", (Exception,), {})("it waits until the paper's other tests pass")
