"""The files that Sphinx reads, one for each page: texts, notebooks, and a page for every file that these link to."""

import os
import re
import shutil
from collections.abc import Iterable
from html import escape
from pathlib import Path

import nbformat
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from minstate.lab.site import links, notebooks
from minstate.lab.site.names import Names, is_public

PICTURES = {".png", ".svg"}
OF_THE_READER = {("out",), ("work",)}  # folders that a reader's own runs fill
LONGEST = 300_000  # characters of a file that its page shows


class Site:
    """The pages by the file that each is made of. A file that somebody links to gets a page when it is first asked for.

    `out` is the folder that Sphinx reads. `dead` lists links that lead to no file, as `PAGE: TARGET`.
    """

    def __init__(self, root: Path, out: Path):
        self.root, self.out, self.names = root.resolve(), out, Names(root)
        self.pages: dict[Path, str] = {}  # a file of the repository → a file of `out`, both relative
        self.waiting: list[Path] = []  # files whose source pages are to be written
        self.dead: list[str] = []

    def write(self, page: str, text: str) -> None:
        """Write one file of `out`."""
        path = self.out / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def resolver(self, folder: Path, page: str, exclude: Iterable[str] = ()) -> tuple[links.Target, links.Mention]:
        """What `links` asks, for a text that lies in `folder` of the repository and is written to `page`."""
        excluded = frozenset(exclude)

        def target(link: str) -> str | None:
            name, mark, place = link.partition("#")
            path = Path(os.path.normpath(folder / name))
            if path.parts[:1] in OF_THE_READER:
                return None
            if not (self.root / path).exists() or path.parts[:1] == ("..",):
                self.dead.append(f"{page}: {link}")
                return None
            return self._seen_from(page, path, mark + place)

        def mention(code: str) -> str | None:
            place = self.names.find(code, excluded)
            line = f"#L{place.line}" if place and place.line else ""
            return links.as_html(self._seen_from(page, place.path, line)) if place else None

        return target, mention

    def _seen_from(self, page: str, path: Path, place: str) -> str | None:
        """The address, relative to `page`, of the page of `path`: a file of `out`, or the HTML page of a source."""
        if not is_public(path) or (found := self._page_of(path)) is None:
            return None
        return os.path.relpath(found, Path(page).parent) + place

    def _page_of(self, path: Path) -> str | None:
        if path in self.pages:
            return self.pages[path]
        whole = self.root / path
        if path.suffix in PICTURES:
            shutil.copy(whole, self.out / path.name)
            self.pages[path] = path.name
        elif whole.is_file() or whole.is_dir():
            self.waiting.append(path)
            self.pages[path] = f"source/{path}/index.html" if whole.is_dir() else f"source/{path}.html"
        return self.pages.get(path)

    def add_text(self, path: Path, page: str, text: str | None = None) -> None:
        """Write the page of a Markdown file, with its links resolved; `text` takes the place of what is in the file."""
        text = (self.root / path).read_text(encoding="utf-8") if text is None else text
        self.write(page, links.markdown(text, *self.resolver(path.parent, page)))

    def add_notebook(self, path: Path, page: str) -> None:
        """Write the page of a stored notebook."""
        notebook = nbformat.read(self.root / path, as_version=4)
        target, mention = self.resolver(path.parent, page, notebooks.names_of_its_own(notebook))
        self.write(page, nbformat.writes(notebooks.prepared(notebook, path, target, mention)))

    def add_sources(self) -> int:
        """Write the pages of all files that are linked. Returns how many there are."""
        count = 0
        while self.waiting:
            path, count = self.waiting.pop(), count + 1
            page = self.pages[path].removesuffix(".html") + ".md"
            self.write(page, self._listing(path, page) if (self.root / path).is_dir() else source_page(self.root, path))
        return count

    def _listing(self, path: Path, page: str) -> str:
        """A folder: its files and folders, each a link."""
        inside = [each.relative_to(self.root) for each in sorted((self.root / path).iterdir())]
        known = {*self.names.files, *(parent for file in self.names.files for parent in file.parents)}
        rows = [(each, links.as_html(self._seen_from(page, each, ""))) for each in inside if each in known]
        items = [f'- <a class="source" href="{address}">`{each.name}`</a>' for each, address in rows if address]
        return f"---\norphan: true\n---\n\n# `{path}/`\n\n" + "\n".join(items) + "\n"


def source_page(root: Path, path: Path) -> str:
    """A file as a page: each line has its number, which is a place to link to."""
    text = (root / path).read_text(encoding="utf-8", errors="replace")
    shown = text if len(text) <= LONGEST else text[:LONGEST].rpartition("\n")[0]
    note = "" if shown == text else f"The first {shown.count(chr(10)):,} of {text.count(chr(10)):,} lines.\n\n"
    code = f"```{{raw}} html\n{listing(shown, path.name)}\n```"
    return f"---\norphan: true\n---\n\n# `{path}`\n\n{note}{code}\n"


def listing(text: str, name: str) -> str:
    """Highlighted code with a number before each line; `L12` is the anchor of line 12."""
    try:
        lexer = get_lexer_for_filename(name, stripnl=False)
    except ClassNotFound:
        return f'<div class="highlight"><pre>{escape(text)}</pre></div>'
    form = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True)
    code = highlight(text, lexer, form)
    return re.sub(r'(id|name|href)="(#?)L-(\d+)"', r'\1="\2L\3"', code)
