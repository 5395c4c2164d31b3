"""The oracle is imported, from wherever the kit may lie.

Must: no task passes, and nothing is touched.
"""

import sys

from targets import HOUSE, reached

sys.path[:0] = [HOUSE, "."]
try:
    import reference.demo.softmax

    reached(f"the oracle {reference.demo.softmax}")
except ImportError:
    pass
