"""Triton's interpreter stores a bfloat16 as its bits, and multiplies matrices of them as if they were integers."""

import os

import numpy as np
import pytest
from hypothesis import Phase, settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:  # the interpreter is slow, so a failing example is shown as it is, without looking for a smaller one
    settings.register_profile("interpreter", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("interpreter")


def _floats(x):
    """A bfloat16 is the upper half of a float32."""
    from triton.runtime.interpreter import TensorHandle, tl

    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@pytest.fixture(autouse=True, scope="session")
def interpreter_that_multiplies_bfloat16():
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            InterpreterBuilder, "create_dot", lambda self, a, b, *rest: multiply(self, _floats(a), _floats(b), *rest)
        )
        yield
