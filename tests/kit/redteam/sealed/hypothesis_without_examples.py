"""hypothesis is made to draw nothing.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import hypothesis.core

hypothesis.settings.register_profile("none", max_examples=1, phases=())
hypothesis.settings.load_profile("none")
hypothesis.core.StateForActualGivenExecution.run_engine = lambda self: None
