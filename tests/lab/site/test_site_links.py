"""Links in Markdown and HTML lead to pages; names of code are links; code, headings and formulas stay as they are."""

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minstate.lab.site.links import html, markdown
from minstate.lab.site.notebooks import prepared

PAGES = {"a.md": "x/a.md", "b.py": "../b.py.html#L2", "p.png": "p.png", "hidden.py": None}
CODE = {"b.py": "../b.py.html", "f": "../b.py.html#L7"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("see [a](a.md)", "see [a](x/a.md)"),
        ("[`b`, line 2](b.py)", '<a class="source" href="../b.py.html#L2">`b`, line 2</a>'),
        ("![A dot.](p.png)", "![A dot.](p.png)"),
        ("[![A dot.](p.png)](a.md)", "[![A dot.](p.png)](x/a.md)"),
        ("[solved](hidden.py).", "solved."),
        ("[paper](https://arxiv.org) [below](#there)", "[paper](https://arxiv.org) [below](#there)"),
        ("`f` and `g`", '<a class="source" href="../b.py.html#L7">`f`</a> and `g`'),
        ("# `f`", "# `f`"),
        ("text\n\n## A title\n\n`f`", 'text\n\n## A title\n\n<a class="source" href="../b.py.html#L7">`f`</a>'),
        ("```python\n`f` [a](a.md)\n```\n", "```python\n`f` [a](a.md)\n```\n"),
        (
            "````{py:class} f\n\n`f`\n````\n",
            '````{py:class} f\n\n<a class="source" href="../b.py.html#L7">`f`</a>\n````\n',
        ),
        ("$$`f`$$ and ``a `f` b``", "$$`f`$$ and ``a `f` b``"),
        ('<a href="q">`f`</a>', '<a href="q">`f`</a>'),
    ],
)
def test_markdown(before, after):
    assert markdown(before, PAGES.__getitem__, CODE.get) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<p><a class="k" href="a.md">a</a></p>', '<p><a class="k" href="x/a.md">a</a></p>'),
        ('<a href="hidden.py">s</a>', "<a>s</a>"),
        ("<code>f</code>", '<a class="source" href="../b.py.html#L7"><code>f</code></a>'),
        ("<pre><code>f</code></pre>", "<pre><code>f</code></pre>"),
        ('<a href="https://arxiv.org"><code>f</code></a>', '<a href="https://arxiv.org"><code>f</code></a>'),
    ],
)
def test_html(before, after):
    assert html(before, PAGES.__getitem__, CODE.get) == after


def test_a_link_of_an_output_leads_to_the_page_of_a_notebook():
    """Sphinx turns links of cells into addresses of pages, and shows outputs as they are."""
    output = new_output("display_data", {"text/markdown": "[the next](08_next.ipynb#end)"})
    notebook = new_notebook(cells=[new_code_cell("show()", outputs=[output])])
    page = prepared(notebook, Path("notebooks/07_this.ipynb"), lambda link: f"course/{link}", lambda code: None)
    assert 'href="course/08_next.html#end"' in page.cells[0].outputs[0].data["text/markdown"]
