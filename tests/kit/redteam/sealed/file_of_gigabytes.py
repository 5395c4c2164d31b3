"""The submission itself is larger than any that a person writes.

Must: no task passes, and nothing is touched.
Says: is larger than
"""

PADDING = 3 << 20
