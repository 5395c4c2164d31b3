"""How a test of a paper may end besides passing and failing."""

from __future__ import annotations

from typing import NoReturn

from _pytest.outcomes import Skipped


class Unverified(Skipped):
    """This machine cannot tell; the message says why."""


class KitFault(Exception):
    """Something of the kit itself is broken, so nothing is said about the candidate."""


class Waiting(Exception):
    """A claim is not run while a task it needs does not pass."""


class Stuck(Exception):
    """A test is not run because another test of its task did not come to an end."""


class Unwritten(BaseException):
    """Stands for an error that says nothing of the case at hand, so that hypothesis does not look
    for a smaller one: a stub's, the kit's, or that of a process that has ended.
    """


def unverified(reason: str) -> NoReturn:
    """End the running test with the verdict `unverified`."""
    raise Unverified(reason)
