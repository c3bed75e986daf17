"""The package's own code in a notebook: read from its file, never a pasted copy."""

import re
from inspect import getsource
from pathlib import Path
from textwrap import dedent

from IPython.display import Markdown


def source(*objects) -> Markdown:
    """The source of functions, methods and classes, one after the other, without the indentation of methods.

    Of a Triton kernel, it is the source of its Python function, `fn`. Raises TypeError for an object without source,
    and OSError if the source cannot be found, as `inspect.getsource` does.
    """
    texts = [dedent(getsource(getattr(each, "fn", each))) for each in objects]
    return Markdown("```python\n" + "\n".join(texts) + "```")


def cpp_source(path: Path, *names: str) -> Markdown:
    """The definitions of functions and structures in a C++ file, each with the comment right above it.

    A definition begins and ends at the left margin. Of a function that is defined for several types, all definitions
    are shown. Raises LookupError if the file does not define a name.
    """
    lines = path.read_text().splitlines()
    texts = []
    for name in names:
        head = re.compile(rf"(__attribute__\(\(\w+\)\) )?\w[^({{]*\b{name} ?[({{]")
        heads = [i for i, line in enumerate(lines) if head.match(line)]
        if not heads:
            raise LookupError(f"{path} does not define {name}")
        texts += [_definition(lines, head) for head in heads]
    return Markdown("```cpp\n" + "\n\n".join(texts) + "\n```")


def _definition(lines: list[str], head: int) -> str:
    """The definition whose name is on line `head`."""
    first = last = head
    while first and re.match("//|template", lines[first - 1]):
        first -= 1
    if not lines[head].endswith(("}", "};")):
        last = next(i for i in range(head, len(lines)) if lines[i].startswith("}"))
    return "\n".join(lines[first : last + 1])
