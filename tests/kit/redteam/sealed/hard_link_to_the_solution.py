"""The submission is a hard link to the solution.

Must: no task passes, and nothing is touched.
Says: is no file of its own
"""

HARD_LINK = "solutions/demo/softmax.py"
