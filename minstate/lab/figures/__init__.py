"""Figures, one file for each subject. A function takes plain data and returns a figure; `palette` has the colours.

In a notebook, figures are shown with two pixels for each point of a screen, so that they stay sharp on a dense one.
Their size on the page does not change: it stands in the output's metadata.
"""

import sys


def show_sharply() -> None:
    """Let the notebook that we run in, if any, show figures at double density. A choice made before stays."""
    if "ipykernel" not in sys.modules:
        return
    from IPython import get_ipython
    from matplotlib_inline.config import InlineBackend

    if shell := get_ipython():
        backend = InlineBackend.instance(parent=shell)
        if backend.figure_formats == {"png"}:
            backend.figure_formats = {"retina"}


show_sharply()
