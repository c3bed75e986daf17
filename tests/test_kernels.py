"""The hand-written kernels compute what they should. (What they are compiled to: `kernels/test_machine_code.py`.)

Without a GPU they run in Triton's interpreter, which must be asked for before triton is imported, and other tests
import it: so these run in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INNER = Path(__file__).parent / "kernels"


@pytest.mark.parametrize("file", sorted(path.name for path in INNER.glob("meaning_*.py")))
def test_kernels_compute_what_they_should(file):
    where = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    quietly = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = [sys.executable, "-m", "pytest", *quietly, str(INNER / file)]
    done = subprocess.run(run, env=os.environ | where, cwd=INNER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
