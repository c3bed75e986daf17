"""What pyproject.toml cannot say: a wheel holds files of the course, which lies outside of the package.

These are the notebook of the main job, and the hidden cases of all exercises, which `check` reads.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

COURSE = [Path("notebooks", "00_start_here.ipynb"), *sorted(Path("notebooks", "cases").glob("*.json"))]


class BuildWithCourse(build_py):
    """Copies the files to where `minstate.lab.paths` looks for them if there is no clone."""

    def build_package_data(self) -> None:
        """Copy the package's data files, and those of the course."""
        super().build_package_data()
        for path in COURSE:
            target = Path(self.build_lib, "minstate", "lab", "data", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(path), str(target))

    def get_source_files(self) -> list[str]:
        """Name these as well, so that a source distribution holds them and can be built from."""
        return [*super().get_source_files(), *map(str, COURSE)]


setup(cmdclass={"build_py": BuildWithCourse})
