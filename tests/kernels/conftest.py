"""Triton's interpreter takes bfloat16, as which it stores bits, for whole numbers when it multiplies matrices."""

import os

import numpy as np
import pytest
from hypothesis import Phase, settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:  # slow: whoever breaks a kernel should not wait for the smallest example that shows it
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
