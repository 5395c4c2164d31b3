"""The solution is asked of git's history.

Must: no task passes, and nothing is touched.
"""

import subprocess

from targets import HOUSE, reached

for command in (["git", "-C", HOUSE, "log", "--all", "-p"], ["cat", f"{HOUSE}/.git/HEAD"]):
    try:
        subprocess.run(command, check=False)
        reached("a program")
    except OSError:
        pass
