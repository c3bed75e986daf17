"""Notebooks: exercises, widgets and source listings for them; programs that run, solve, browse and publish them."""

from importlib.util import find_spec

from minstate.lab.extras import INSTALL

if find_spec("nbformat") is None:
    message = f"notebooks need nbformat, which comes with the extra `lab`; install it with: {INSTALL}"
    raise ModuleNotFoundError(message, name="nbformat")
