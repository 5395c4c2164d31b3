"""The gate: how fast a kernel is on this machine's NVIDIA GPU, beside others in the same run.

Right values first; then everybody in random order, round after round, and a verdict that may be
"undecided". `protocol` is the measuring, `child` the process it happens in.
"""
