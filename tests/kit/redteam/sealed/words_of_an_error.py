"""An error says a megabyte of escape sequences, HTML and formulas.

Must: no task passes, and nothing is touched.
Says: ValueError
"""


def softmax(x, *, temperature=1.0):
    raise ValueError("\x1b[2J<script>alert(1)</script>\r=cmd|'/c calc'!A1" * 100_000)


entropy = softmax
