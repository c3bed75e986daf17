"""The links of the built site: each must lead to a page, and to a place on it that is there.

python -m minstate.lab.site.check               # links within the site
python -m minstate.lab.site.check --external    # and those that lead out of it, which needs a network
"""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from minstate.lab.paths import OUT

PATIENCE = 20  # seconds for a page outside
ADDRESSES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to and loads, where one can link to, and what its pictures say."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = {""}
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Note one element."""
        found = dict(attrs)
        self.places |= {found.get("id") or "", found.get("name") or "" if tag == "a" else ""}
        if address := found.get(ADDRESSES.get(tag, "")):
            outside = tag == "a" or (
                tag == "link" and found.get("rel") in ("canonical", "search", "next", "prev", "index")
            )
            (self.links if outside else self.loaded).append(address)
        if tag == "img":
            self.alternatives.append(found.get("alt") or "")


def read(folder: Path) -> dict[Path, Page]:
    """All pages below `folder`."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.resolve().rglob("*.html"))}


def broken(pages: dict[Path, Page]) -> list[str]:
    """Links within the site that lead nowhere, as `PAGE: LINK`, and what a page loads from outside of the site."""
    wrong = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    wrong.append(f"{path.name} loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.is_file() or (target in pages and place not in pages[target].places):
                wrong.append(f"{path.name}: {link}")
    return sorted(set(wrong))


def external(pages: dict[Path, Page]) -> list[str]:
    """The links that lead out of the site."""
    found = {link for page in pages.values() for link in page.links if urlsplit(link).scheme in ("http", "https")}
    return sorted(link for link in found if urlsplit(link).hostname not in ("localhost", "127.0.0.1"))


def unreachable(links: Iterable[str]) -> list[str]:
    """The links outside that do not answer, or answer that there is no such page. Needs a network."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(zip(links, pool.map(_answer, links), strict=True))
    return [f"{link}: {answer}" for link, answer in answers if answer]


def _answer(link: str) -> str:
    """What is wrong with a page outside; "" if nothing is, or if it only refuses programs."""
    request = Request(link.partition("#")[0], headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urlopen(request, timeout=PATIENCE):
            return ""
    except HTTPError as error:
        return f"status {error.code}" if error.code in (404, 410) else ""
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """Check the built site. Returns 1 if a link is broken."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.site.check", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=OUT / "site")
    parser.add_argument("--external", action="store_true", help="also ask for the pages outside")
    arguments = parser.parse_args()
    pages = read(arguments.folder)
    if not pages:
        sys.exit(f"error: no page in {arguments.folder}: `make site` builds the site")
    outside = external(pages)
    wrong = broken(pages) + (unreachable(outside) if arguments.external else [])
    silent = sum(text == "" for page in pages.values() for text in page.alternatives)
    print(
        f"{len(pages)} pages, {sum(len(page.links) for page in pages.values()):,} links, {len(outside)} to other sites"
    )
    print(f"{len(wrong) or 'no'} broken links, {silent or 'no'} pictures without a text", *wrong, sep="\n    ")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
