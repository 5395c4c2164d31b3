"""The submission's folder is a symbolic link to that of the solutions.

Must: no task passes, and nothing is touched.
Says: is reached by a link
"""

LINKED_FOLDER = "solutions/demo"
