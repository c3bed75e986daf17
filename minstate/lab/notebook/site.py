"""The course as web pages, from the notebooks as they are stored: nothing is executed.

    python -m minstate.lab.notebook.site

writes `out/site/`: an index page from `notebooks/README.md`, a page for each notebook, and a page for every file that
these link to, source code included. The pages contain their style and their pictures and run no script, so they can be
read without a network; only links to papers lead outside. Widgets are left out, because they need a kernel.
"""

import os
import re
from html import escape
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from pygments.formatters import HtmlFormatter

from minstate.lab.paths import OUT, clone_for

STYLE = """
:root { --ink: #222; --pale: #f6f7f8; --line: #dde1e4; --blue: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: white;
  font: 1.05rem/1.6 "Source Serif 4", Charter, "Bitstream Charter", Cambria, Georgia, serif; }
main, body > nav, footer { max-width: 60rem; margin: 0 auto; padding: 0 1.2rem; }
h1, h2, h3, nav, table, summary, footer, .note {
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 1.2rem 0; }
h2 { font-size: 1.4rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 1.8rem 0 .4rem; }
a { color: var(--blue); } a:hover { text-decoration-thickness: 2px; }
a.anchor-link { visibility: hidden; padding-left: .3em; text-decoration: none; }
:is(h1, h2, h3):hover a.anchor-link, a.anchor-link:focus { visibility: visible; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: white; padding: .4rem; }
body > nav { display: flex; gap: 1rem; justify-content: space-between; padding-top: .8rem; padding-bottom: .8rem; }
body > nav span { flex: 1; } body > nav span:last-child { text-align: right; }
body > nav span:nth-child(2) { flex: none; }
details.contents { background: var(--pale); padding: .5rem 1rem; border-radius: 6px; }
details.contents ul { margin: .4rem 0; padding-left: 1.2rem; list-style: none; }
code, pre { font-family: ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { font-size: .86em; background: var(--pale); padding: .05em .25em; border-radius: 3px; }
pre { font-size: .8rem; line-height: 1.45; overflow-x: auto; margin: 0; } pre code { background: none; padding: 0; }
.highlight { background: var(--pale); border-left: 3px solid var(--line); padding: .7rem .9rem; margin: .8rem 0; }
.output_text pre { padding: .2rem .9rem; margin: .6rem 0; border-left: 3px solid var(--blue); }
.output_png img { max-width: 100%; height: auto; margin: .6rem 0; }
blockquote { margin: 1.2rem 0; padding: .1rem 1rem; border-left: 4px solid #E69F00; background: #fff8ea; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.4; }
th, td { border: 0 solid var(--line); border-width: 0 0 1px; padding: .3rem .7rem; text-align: left;
  vertical-align: top; }
.dataframe td { text-align: right; font-variant-numeric: tabular-nums; }
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: .6rem; padding-bottom: 2rem;
  font-size: .85rem; color: #555; }
.note { font-size: .85rem; color: #555; }
@media print { body > nav, .contents, a.anchor-link { display: none; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<a class="skip" href="#text">Skip to the text</a>
{above}
<main id="text">
{body}
</main>
{below}
<footer>minstate: stateful inference for multi-agent tool calling, small enough to read. Apache-2.0.</footer>
</body>
</html>
"""
MOVING = "application/vnd.jupyter.widget-view+json"
NOTE = '<p class="note">(With a running kernel, a widget stands here: <code>make lab</code>.)</p>'
LINK = re.compile(r'(<a [^>]*?href=")([^"#:]+)(#[^"]*)?"')
MENTION = re.compile(r"(?<!\">)<code>(minstate/[\w/]+\.py)</code>")


class Site:
    """The pages of the site, by the file that each is made of, and the files whose pages are still to be written."""

    def __init__(self, notebooks: list[Path], guide: Path):
        self.root, self.names, self.waiting = guide.resolve().parents[1], {}, []
        self._add(guide, "index.html")
        for path in notebooks:
            self._add(path, f"{path.stem}.html")

    def _add(self, path: Path, name: str) -> str:
        self.names[path.resolve()] = name
        self.waiting.append(path.resolve())
        return name

    def page_of(self, path: Path) -> str:
        """The name of the page of `path`, which will be written. Raises ValueError if there is no such file."""
        path = path.resolve()
        if path in self.names:
            return self.names[path]
        if path.suffix == ".ipynb" or not path.exists() or not path.is_relative_to(self.root):
            raise ValueError(f"a link leads to {os.path.relpath(path, self.root)}, which has no page")
        return self._add(path, "-".join(path.relative_to(self.root).parts).removesuffix(".md") + ".html")

    def with_links(self, html: str, folder: Path) -> str:
        """`html` with its links to files of the repository turned into links to their pages."""
        html = LINK.sub(lambda found: f'{found[1]}{self.page_of(folder / found[2])}{found[3] or ""}"', html)
        return MENTION.sub(lambda found: self._mention(*found.group(0, 1)), html)

    def _mention(self, html: str, name: str) -> str:
        """A file's name in a text, as a link if there is such a file."""
        path = self.root / name
        return f'<a href="{self.page_of(path)}">{html}</a>' if path.exists() else html


def as_notebook(path: Path) -> NotebookNode:
    """A notebook; a file or folder of another kind becomes a notebook of one text cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    if path.suffix == ".md":
        return new_notebook(cells=[new_markdown_cell(path.read_text())])
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    texts = [f"`{file.name}`\n\n```python\n{file.read_text()}\n```" for file in files]
    return new_notebook(cells=[new_markdown_cell("\n\n".join([f"# {path.name}", *texts]))])


def body_of(notebook: NotebookNode) -> str:
    """The notebook as HTML, without a head and without prompts; a note takes the place of each widget."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if MOVING in output.get("data", {}):
                output.data = {"text/html": NOTE}
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    html = exporter.from_notebook_node(notebook)[0]
    html = re.sub(r"<style[^>]*>.*?</style>", "", html, flags=re.DOTALL)  # styles of data frames: ours are in `STYLE`
    return html.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")


def contents(html: str) -> str:
    """Links to the sections, if there are more than two."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', html, flags=re.DOTALL)
    items = "".join(f'<li><a href="#{anchor}">{re.sub("<.*?>", "", title)}</a></li>' for anchor, title in found)
    return f'<details class="contents"><summary>Sections</summary><ul>{items}</ul></details>' if len(found) > 2 else ""


def navigation(before: tuple[str, str] | None, after: tuple[str, str] | None, label: str) -> str:
    """Links to the course and to the neighbours, given as (page, title)."""
    left, right = (f'<a href="{each[0]}">{each[1]}</a>' if each else "" for each in (before, after))
    middle = '<a href="index.html">The course</a>'
    return (
        f'<nav aria-label="{label}"><span>{left and "← " + left}</span><span>{middle}</span>'
        f"<span>{right and right + ' →'}</span></nav>"
    )


def title_of(notebook: NotebookNode, path: Path) -> str:
    """The first heading, as HTML."""
    first = re.search(r"^# (.*)$", notebook.cells[0].source if notebook.cells else "", flags=re.MULTILINE)
    return escape(first[1] if first else path.stem)


def build(notebooks: list[Path], guide: Path, out: Path) -> list[Path]:
    """Write the pages of `notebooks`, in this order, of `guide` as their index, and of all files that they link to."""
    site, pages = Site(notebooks, guide), []
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.html"):
        stale.unlink()
    (out / "style.css").write_text(HtmlFormatter(style="friendly").get_style_defs(".highlight") + STYLE)
    titles = [(site.page_of(path), title_of(as_notebook(path), path)) for path in notebooks]
    shifted = zip([None, *titles[:-1]], titles, [*titles[1:], None], strict=True)
    neighbours = {name: (before, after) for before, (name, _), after in shifted}
    while site.waiting:
        path = site.waiting.pop(0)
        name, notebook = site.names[path], as_notebook(path)
        html = site.with_links(body_of(notebook), path.parent)
        if path.suffix == ".ipynb":
            html = html.replace("</h1>", f"</h1>{contents(html)}", 1)
        before, after = neighbours.get(name, (None, None))
        text = PAGE.format(
            title=title_of(notebook, path), body=html,
            above=navigation(before, after, "course, top"), below=navigation(before, after, "course, bottom"),
        )  # fmt: skip
        (out / name).write_text(text)
        pages.append(out / name)
    return pages


def main() -> None:
    """Write the site of the whole course."""
    folder = clone_for("lab.notebook.site") / "notebooks"
    pages = build(sorted(folder.glob("[0-9][0-9]_*.ipynb")), folder / "README.md", OUT / "site")
    print(f"{len(pages)} pages; begin with {pages[0]}")


if __name__ == "__main__":
    main()
