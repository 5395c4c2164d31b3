"""The submission is a pipe, from which nothing ever comes.

Must: no task passes, and nothing is touched.
Says: is no file of its own
"""

PIPE = True
