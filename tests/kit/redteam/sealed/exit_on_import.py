"""The process ends with the status of success while the submission is imported.

Must: no task passes, and nothing is touched.
Says: the process that runs it has ended
"""

import os

os._exit(0)
