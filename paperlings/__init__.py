"""Paperlings: machine-learning papers as test-driven exercises.

Importing this package costs no torch: what is heavy loads where it is used.
"""


class UsageError(ValueError):
    """An argument is wrong; the message says what was expected."""
