"""One sentence, and no traceback, where a command needs packages of the extra `lab` that are not installed."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "minstate[lab]"])


@contextmanager
def lab_extra(program: str) -> Iterator[None]:
    """Around a command's imports: if a package is missing, end the program and name the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "minstate").partition(".")[0] == "minstate":
            raise  # a mistake of ours
        sys.exit(f"error: {program} needs {error.name}, which comes with the extra `lab`; install it with: {INSTALL}")
