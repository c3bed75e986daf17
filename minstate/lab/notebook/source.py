"""The package's own code in a notebook: read from its file, never a pasted copy."""

from inspect import getsource
from textwrap import dedent

from IPython.display import Markdown


def source(*objects) -> Markdown:
    """The source of functions, methods and classes, one after the other, without the indentation of methods.

    Of a Triton kernel, it is the source of its Python function, `fn`. Raises TypeError for an object without source,
    and OSError if the source cannot be found, as `inspect.getsource` does.
    """
    texts = [dedent(getsource(getattr(each, "fn", each))) for each in objects]
    return Markdown("```python\n" + "\n".join(texts) + "```")
