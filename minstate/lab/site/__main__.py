"""Build the site: write what Sphinx reads, run Sphinx, check all links within the site."""

import argparse
import subprocess
import sys
from importlib.util import find_spec

from minstate.lab.paths import OUT, clone_for
from minstate.lab.site import check
from minstate.lab.site.book import write_book

SOURCE, TREES, PAGES = OUT / "site-source", OUT / "site-trees", OUT / "site"


def main() -> int:
    """Build the site of the clone. Returns 1 if a link leads nowhere, or Sphinx fails or warns."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.site", description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="write what Sphinx reads, and stop")
    prepare = parser.parse_args().prepare
    site = write_book(clone_for("lab.site"), SOURCE)
    for link in site.dead:
        print(f"a link leads to no file: {link}")
    if prepare:
        print(f"what Sphinx reads is in {SOURCE}")
        return int(bool(site.dead))
    if find_spec("myst_nb") is None:
        sys.exit("error: Sphinx is not installed: `make site`, or `pip install -c constraints.txt -e '.[site]'`")
    options = ["--quiet", "--jobs", "2", "--fresh-env", "--keep-going", "--fail-on-warning"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-b", "html", "-d", TREES, SOURCE, PAGES], check=False
    )
    pages = check.read(PAGES)
    wrong = check.broken(pages)
    print(f"{len(pages)} pages; begin with {PAGES / 'index.html'}")
    print(f"{len(wrong) or 'no'} broken links", *wrong, sep="\n    ")
    return int(bool(site.dead or wrong or built.returncode))


if __name__ == "__main__":
    sys.exit(main())
