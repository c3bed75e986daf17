"""The package's own code in a notebook: shown as it is, never a pasted copy."""

from inspect import getsource
from textwrap import dedent

from IPython.display import Markdown


def source(*objects) -> Markdown:
    """The source of functions, methods and classes, one after the other, with a method's indentation taken away.

    A Triton kernel's Python function is its `fn`. Raises what `inspect.getsource` does: TypeError for an object that
    has no source, OSError for one whose source can't be found.
    """
    texts = [dedent(getsource(getattr(each, "fn", each))) for each in objects]
    return Markdown("```python\n" + "\n".join(texts) + "```")
