"""A process in a session of its own outlives the grading, and edits its result.

Must: no task passes, and nothing is touched.
"""

import os
import time

from targets import DROP, reached

if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(2)
        open(f"{DROP}/daemon", "w").close()
    os._exit(0)
reached("a process of its own")
