"""The import does not come to an end, whatever is raised in it.

Must: no task passes, and nothing is touched.
Says: does not come to an end while it is imported
"""

while True:
    try:
        while True:
            pass
    except BaseException:
        pass
