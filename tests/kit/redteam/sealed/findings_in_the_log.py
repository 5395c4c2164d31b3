"""Findings are written into every log that lies where judges put theirs.

Must: no task passes, and nothing is touched.
"""

import glob
import json
import os

from targets import TMP, reached

finding = {"key": "demo/softmax", "test": "test_rows_far_apart_are_all_right"}
for path in glob.glob("/tmp/paperlings-*/*") + glob.glob(f"{TMP}/paperlings-*/*"):
    with open(path, "a") as file:
        file.write("\n" + json.dumps({**finding, "status": "passed"}) + "\n")
    os.chmod(path, 0o444)
    reached("the log of a judge")
