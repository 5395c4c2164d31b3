"""The submission is a symbolic link to the oracle.

Must: no task passes, and nothing is touched.
Says: is reached by a link
"""

LINK = "reference/demo/softmax.py"
