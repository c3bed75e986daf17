"""What pyproject.toml cannot say: a wheel holds the notebook of the main job, which lies outside of the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NOTEBOOK = Path("notebooks", "00_start_here.ipynb")


class BuildWithNotebook(build_py):
    """Copies the notebook to where `minstate.lab.paths` looks for it if there is no clone."""

    def build_package_data(self) -> None:
        """Copy the package's data files, and the notebook."""
        super().build_package_data()
        target = Path(self.build_lib, "minstate", "lab", "data", NOTEBOOK)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(NOTEBOOK), str(target))

    def get_source_files(self) -> list[str]:
        """Name the notebook as well, so that a source distribution holds it and can be built from."""
        return [*super().get_source_files(), str(NOTEBOOK)]


setup(cmdclass={"build_py": BuildWithNotebook})
