"""Errors that Python itself reads are raised: those that end a loop, a generator, a session.

Must: no task passes, and nothing is touched.
Says: KeyboardInterrupt
"""

kinds = [StopIteration, GeneratorExit, KeyboardInterrupt, StopAsyncIteration, SystemExit]
count = 0


def softmax(x, *, temperature=1.0):
    global count
    count += 1
    raise kinds[count % len(kinds)]("it has ended")


def entropy(p):
    raise KeyboardInterrupt("it has ended")
