"""What notebooks need: exercises, widgets, source listings; and what runs, solves, browses and publishes them."""

from importlib.util import find_spec

from minstate.lab.extras import INSTALL

if find_spec("nbformat") is None:
    message = f"notebooks need nbformat, which comes with the extra `lab`; install it with: {INSTALL}"
    raise ModuleNotFoundError(message, name="nbformat")
