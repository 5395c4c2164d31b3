"""Every open file is used, in case the connections of others were inherited.

Must: no task passes, and nothing is touched.
"""

import os

from targets import reached

for handle in [0, 1, 2, *range(4, 256)]:
    try:
        if os.path.samestat(os.fstat(handle), os.stat(os.devnull)):
            continue
        os.write(handle, b"passed")
        reached(f"the open file {handle}")
    except OSError:
        pass
