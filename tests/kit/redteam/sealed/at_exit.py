"""What forges the result waits until the process ends.

Must: no task passes, and nothing is touched.
"""

import atexit

from targets import DROP


@atexit.register
def forge():
    with open(f"{DROP}/at_exit", "w") as file:
        file.write("passed")
