"""The submission is no UTF-8.

Must: no task passes, and nothing is touched.
Says: is no UTF-8 text
"""

TEXT = "\udcff\udcfe"
