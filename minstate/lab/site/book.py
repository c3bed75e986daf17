"""What stands where in the site: the course in its order, the reference, the results, the pages for lecturers."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from minstate.lab.site import reference, results
from minstate.lab.site.pages import Site

PARTS = {  # the first chapter of each part
    "00": "I · One agent",
    "04": "II · Many agents share",
    "06": "III · Speculation and schedule",
    "08": "IV · Memory and machines",
    "10": "V · Does it hold?",
    "13": "VI · Out of the door",
}
EXTRAS = {"quizzes": "Quizzes", "labs": "Labs"}  # folders of the course whose files are pages, if they are there
TEXTS = {  # the pages that are Markdown files of the repository
    "notebooks/README.md": "course/index.md",
    "notebooks/for_lecturers.md": "lecturers/index.md",
    "ARCHITECTURE.md": "reference/architecture.md",
    "notebooks/glossary.md": "reference/glossary.md",
    "docs/many_machines.md": "reference/many_machines.md",
    "REPORT.md": "results/report.md",
    "CONTRIBUTING.md": "reference/contributing.md",
}


def write_book(root: Path, out: Path) -> Site:
    """Write all that Sphinx reads into `out`, which is emptied first. Returns the site, which names its dead links."""
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(root / "site", out)
    site = Site(root, out)
    site.pages |= {path.relative_to(root): str(path.relative_to(root / "site")) for path in _own_pages(root)}
    tables = _results_pages(site)
    chapters = _chapters(site)
    extras = {title: _register(site, folder) for folder, title in EXTRAS.items()}
    pages = {Path(name): page for name, page in TEXTS.items() if (root / name).exists()}
    site.pages |= pages | {Path("README.md"): "index.md", Path("notebooks"): "course/index.md"}
    api = {f"reference/{slug(title)}.md": text for title, text in reference.reference(root).items()}
    everything = chapters | {path: page for found in extras.values() for path, page in found.items()}
    for path, page in everything.items():
        (site.add_notebook if path.suffix == ".ipynb" else site.add_text)(path, page)
    for path, page in pages.items():
        site.add_text(path, page)
    for page, text in api.items():
        site.add_text(Path("README.md"), page, text)
    lists = {
        "course": _course(chapters, extras),
        "reference": _toctree("Reference", ["reference/index.md", *api, *_in(pages, "reference")]),
        "results": _toctree("Results", ["results/index.md", *_in(pages, "results"), *tables]),
        "lecturers": _toctree("For lecturers", _in(pages, "lecturers")),
        "table of results": "\n".join(f"- [{title}](/{page})" for page, title in tables.items()),
    }
    for path in _own_pages(root):
        _fill(site, path, lists)
    site.add_sources()
    return site


def _own_pages(root: Path) -> list[Path]:
    """The pages that are written for the site alone."""
    return sorted((root / "site").rglob("*.md"))


def slug(title: str) -> str:
    """The name of a page's file."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def _results_pages(site: Site) -> dict[str, str]:
    """Write the pages of results, and copy the data. Returns their titles by page."""
    folder, data = site.root / "data" / "results", site.out / "extra" / "data"
    data.mkdir(parents=True)
    pages = {f"results/{slug(title)}.md": (title, paths) for title, paths in results.grouped(folder).items()}
    for page, (_, paths) in pages.items():
        for path in paths:
            site.pages[path.relative_to(site.root)] = f"{page}#{results.anchor_of(path)}"
            shutil.copy(path, data)
    site.pages[Path("data/results")] = "results/index.md"
    for page, (title, paths) in pages.items():
        site.add_text(Path("data/results/x.md"), page, results.page(title, paths, site.root))
    return {page: title for page, (title, _) in pages.items()}


def _chapters(site: Site) -> dict[Path, str]:
    """The notebooks of the course in the order of reading, which is that of their names."""
    found = sorted((site.root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    pages = {path.relative_to(site.root): f"course/{path.name}" for path in found}
    site.pages |= pages
    return pages


def _register(site: Site, folder: str) -> dict[Path, str]:
    """The pages of a folder of the course, its README first."""
    found = [each for each in sorted((site.root / "notebooks" / folder).rglob("*")) if each.suffix in (".md", ".ipynb")]
    found.sort(key=lambda each: each.stem != "README")
    pages = {path.relative_to(site.root): f"course/{path.relative_to(site.root / 'notebooks')}" for path in found}
    site.pages |= pages
    return pages


def _in(pages: dict[Path, str], chapter: str) -> list[str]:
    return [page for page in pages.values() if page.startswith(chapter)]


def _toctree(caption: str, pages: Iterable[str]) -> str:
    entries = "\n".join(page.rpartition(".")[0] for page in pages)
    return f"```{{toctree}}\n:caption: {caption}\n:hidden:\n:titlesonly:\n\n{entries}\n```" if entries else ""


def _course(chapters: dict[Path, str], extras: dict[str, dict[Path, str]]) -> str:
    """The contents of the course: each part with its quiz at the end, then whatever else the extra folders hold."""
    parts: dict[str, list[str]] = {title: [] for title in PARTS.values()}
    for path, page in chapters.items():
        parts[[title for first, title in PARTS.items() if first <= path.name[:2]][-1]].append(page)
    left = {title: list(pages.values()) for title, pages in extras.items()}
    for number, pages in enumerate(parts.values(), 1):
        if (quiz := f"course/quizzes/part_{number}.ipynb") in left["Quizzes"]:
            left["Quizzes"].remove(quiz)
            pages.append(quiz)
    trees = [_toctree("The course", ["course/index.md"])]
    return "\n\n".join(trees + [_toctree(title, pages) for title, pages in [*parts.items(), *left.items()] if pages])


def _fill(site: Site, path: Path, lists: dict[str, str]) -> None:
    """Write a page of the folder `site/`, with the lists that it asks for, as in `<!-- reference -->`."""
    page = path.relative_to(site.root / "site")
    site.add_text(path.relative_to(site.root), str(page))
    text = (site.out / page).read_text(encoding="utf-8")
    site.write(str(page), re.sub(r"<!-- ([a-z ]+) -->", lambda found: lists.get(found[1], found.group()), text))
