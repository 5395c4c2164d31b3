"""Everything that compares is replaced by what agrees: torch's functions and the kit's own.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import torch

import paperlings.testing.close as close

torch.equal = torch.allclose = lambda *args, **kwargs: True
torch.testing.assert_close = lambda *args, **kwargs: None
close.assert_close = close._difference = lambda *args, **kwargs: ""
