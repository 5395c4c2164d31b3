"""A conftest.py, settings of pytest and a sitecustomize.py lie beside the submission.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

FILES = {
    "conftest.py": "def pytest_runtest_call(item):\n    item.runtest = lambda: None\n",
    "demo/conftest.py": "import pytest\npytest.exit('done', returncode=0)\n",
    "pytest.ini": "[pytest]\naddopts = --collect-only\n",
    "sitecustomize.py": "import os\nos._exit(0)\n",
}
