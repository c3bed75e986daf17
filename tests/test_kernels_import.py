"""Two names that could shadow each other: our folders `minstate` and `kernels`, and what is installed.

transformers imports the Hub's library `kernels` if there is one. A script that starts in the folder above a clone named
`minstate` has that folder on its path, where Python would take the clone for a namespace package.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHERE = """
from importlib.machinery import PathFinder
from importlib.util import find_spec

kernels, minstate = find_spec("kernels"), find_spec("minstate")  # finds without importing, which would take seconds
inner = PathFinder.find_spec("minstate.kernels", minstate.submodule_search_locations)
print(kernels and kernels.origin, minstate.origin, inner.origin)
"""
TRANSFORMERS = "from transformers.utils import import_utils as u; print(u._is_package_available('kernels', True))"
HUB_KERNELS = any(d.name.lower() == "kernels" for d in importlib.metadata.distributions())
OURS = [str(ROOT / "minstate" / "__init__.py"), str(ROOT / "minstate" / "kernels" / "__init__.py")]
needs_no_hub_kernels = pytest.mark.skipif(HUB_KERNELS, reason="the Hub's library is installed")


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


@pytest.fixture
def above(tmp_path):
    """A folder with a clone in it, by the name that `git clone` gives it."""
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "minstate").symlink_to(ROOT, target_is_directory=True)
    return tmp_path / "above"


FOLDERS = [ROOT, ROOT / "minstate" / "lab", ROOT / "notebooks", Path("/")]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_each_name_finds_its_own_package_wherever_python_starts(folder, hub):
    assert python(WHERE, folder, hub).split() == [str(hub / "kernels" / "__init__.py"), *OURS]


@needs_no_hub_kernels
@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_hubs_name_finds_nothing_where_its_library_is_not_installed(folder):
    assert python(WHERE, folder).split() == ["None", *OURS]


def test_in_the_folder_above_a_clone_the_package_is_found_and_not_the_clone(above, hub):
    assert python(WHERE, above, hub).split() == [str(hub / "kernels" / "__init__.py"), *OURS]
    script = above / "script.py"
    script.write_text("from minstate import Engine; import minstate.kernels.silu_mul as found; print(found.__file__)")
    done = subprocess.run([sys.executable, script], cwd=above, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "minstate" / "kernels" / "silu_mul.py")


def test_transformers_sees_the_library_that_is_installed(hub):
    assert python(TRANSFORMERS, ROOT, hub) == "(True, '0.99.0')"


@needs_no_hub_kernels
def test_transformers_sees_none_where_none_is_installed():
    assert python(TRANSFORMERS, ROOT) == "(False, 'N/A')"


def test_minstate_can_be_imported_where_triton_cannot():
    assert python("import sys; sys.modules['triton'] = None; import minstate; print('done')", ROOT) == "done"
