"""Modules called like those of Python and of the kit lie beside the submission.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

FILES = {
    name: "raise SystemExit(0)\n"
    for name in ("reference.py", "random.py", "torch.py", "numpy.py", "demo/json.py", "demo/ast.py")
}
