"""The hand-written kernels compute what they should; `kernels/test_machine_code.py` checks their machine code.

Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is imported. Other tests
import triton, so each file of kernel tests runs in a process of its own.
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
