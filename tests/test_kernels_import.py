"""The folder `kernels/` is the package `minstate.kernels`, and is never taken for the Hub's library `kernels`."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHERE = "from importlib.util import find_spec as f; print(f('kernels').origin, f('minstate.kernels.silu_mul').origin)"
TRANSFORMERS = "from transformers.utils import import_utils as u; print(u._is_package_available('kernels', True))"
HUB_KERNELS = any(d.name.lower() == "kernels" for d in importlib.metadata.distributions())


def python(code: str, folder: Path, path: Path | None = None) -> str:
    """What `code` prints in a new process that starts in `folder`, with `path` on its sys.path."""
    env = os.environ | {"PYTHONPATH": str(path or "")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def hub(tmp_path):
    """A folder with a library called `kernels`, installed."""
    package, info = tmp_path / "kernels", tmp_path / "kernels-0.99.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.99.0\n")
    return tmp_path


def folders():
    return [ROOT, ROOT / "kernels", ROOT / "notebooks", Path("/")]


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_each_name_finds_its_own_package_wherever_python_starts(folder, hub):
    found = python(WHERE, folder, hub).split()
    assert found == [str(hub / "kernels" / "__init__.py"), str(ROOT / "kernels" / "silu_mul.py")]


def test_transformers_sees_the_library_that_is_installed(hub):
    assert python(TRANSFORMERS, ROOT, hub) == "(True, '0.99.0')"


@pytest.mark.skipif(HUB_KERNELS, reason="the Hub's library is installed")
def test_transformers_sees_none_where_none_is_installed():
    assert python(TRANSFORMERS, ROOT) == "(False, 'N/A')"


def test_minstate_can_be_imported_where_triton_cannot():
    assert python("import sys; sys.modules['triton'] = None; import minstate; print('done')", ROOT) == "done"
