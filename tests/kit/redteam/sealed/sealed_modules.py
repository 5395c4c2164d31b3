"""The modules that serve the judge are rewritten where the submission runs.

Must: no task passes, and nothing is touched.
"""

import sys

from paperlings.sealed import candidate, wire

candidate._Candidate._failure = lambda self, error: {"is": "value", "value": True}
candidate.effects = wire.pack = lambda *args, **kwargs: None
for name in [name for name in sys.modules if name.startswith("paperlings")]:
    del sys.modules[name]
