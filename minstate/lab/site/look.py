"""Five pages of the built site in a real browser: on a phone, a tablet and a desk, by day and by night.

    python -m minstate.lab.site.look                        # or name other pages: course/03_the_delta_turn.html

It needs the extra `browse` and Chromium, as `minstate.lab.notebook.browse` does. Screenshots go to `out/site-look/`.
The exit status is 1 if a page scrolls sideways, if a picture does not load or has no text, if one text lies on top of
another, if a script fails, or if a page asks for anything that is not a part of the site. What is ugly it cannot see:
look at the screenshots.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minstate.lab.notebook.browse import chromium
from minstate.lab.paths import OUT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SITE, PICTURES = OUT / "site", OUT / "site-look"
WIDTHS = {400: 800, 800: 1100, 1400: 900}  # of the window, and its height, in pixels
TALLEST = 6000  # pixels of a screenshot
# Boxes of lines of text that others cover. Text that its own box has scrolled out of sight does not count, nor do
# formulas, in which boxes of symbols overlap by design.
OVERLAPS = """() => {
    const lines = [], walker = document.createTreeWalker(document.querySelector('article') ?? document.body, 4)
    for (let node; (node = walker.nextNode());) {
        const parent = node.parentElement
        if (!node.data.trim() || parent.closest('math, script, style') || !parent.checkVisibility()) continue
        const range = document.createRange()
        range.selectNodeContents(node)
        const frames = []
        for (let each = parent; each; each = each.parentElement)
            if (getComputedStyle(each).overflowX !== 'visible') frames.push(each.getBoundingClientRect())
        for (const box of range.getClientRects()) {
            const seen = frames.every(each => box.right > each.left && box.left < each.right &&
                box.bottom > each.top && box.top < each.bottom)
            if (seen && box.width > 2 && box.height > 2) lines.push({box, node}) } }
    lines.sort((a, b) => a.box.top - b.box.top)
    const found = []
    lines.forEach((one, i) => {
        for (let j = i + 1; j < lines.length && lines[j].box.top < one.box.bottom; j++) {
            const other = lines[j]
            const wide = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left)
            const high = Math.min(one.box.bottom, other.box.bottom) - other.box.top
            const least = Math.min(one.box.height, other.box.height)
            if (one.node !== other.node && wide > 3 && high > 0.5 * least)
                found.push('text on text: ' + [one, other].map(each => each.node.data.trim().slice(0, 40)).join(' | '))
        } })
    return found.slice(0, 5) }"""
FAULTS = """() => {
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth
    const pictures = [...document.images].filter(each => each.checkVisibility())
    return [...(wide > 1 ? [`the page is ${wide} pixels wider than the window`] : []),
        ...pictures.filter(each => !each.naturalWidth).map(each => `no picture: ${each.src.slice(0, 80)}`),
        ...pictures.filter(each => !each.alt).map(each => `a picture without a text: ${each.src.slice(0, 80)}`)] }"""


def chosen(site: Path) -> list[str]:
    """The pages to look at, if none is named: the front, the first and a long chapter, the reference, the headline."""
    chapters = sorted(path.relative_to(site).as_posix() for path in (site / "course").glob("[0-9][0-9]_*.html"))
    named = ["index.html", "reference/turns.html", "results/the_headline.html"]
    return [named[0], *chapters[:1], *chapters[len(chapters) // 2 :][:1], *named[1:]]


def look_at(page: "Page", address: str) -> list[str]:
    """Open one page and name its faults."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url[:100]}"))
    page.on(
        "request", lambda request: wrong.append(f"asks for {request.url[:100]}") if request.url[:4] == "http" else None
    )
    page.goto(address)
    page.wait_for_load_state("load")
    page.evaluate(
        "document.images.length && Promise.all([...document.images].map(each => each.decode().catch(() => 0)))"
    )
    return wrong + page.evaluate(FAULTS) + page.evaluate(OVERLAPS)


def look(browser: "Browser", site: Path, names: list[str], pictures: Path) -> dict[str, list[str]]:
    """Look at each page in each width and by day and night, with a screenshot of each. Returns the faults of each."""
    found = {}
    for name in names:
        for width, height in WIDTHS.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                title = f"{name.removesuffix('.html').replace('/', '-')}-{width}-{scheme}"
                found[title] = look_at(page, (site / name).resolve().as_uri())
                high = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
                page.set_viewport_size({"width": width, "height": high})
                page.screenshot(path=pictures / f"{title}.png")
                page.close()
    return found


def main(names: list[str]) -> int:
    """Look at the named pages, or at five. Returns an exit status; SystemExit says what is missing."""
    if not (SITE / "index.html").exists():
        sys.exit(f"error: no page in {SITE}: `make site` builds the site")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sys.exit("playwright is not installed: `make browse`, or `pip install -c constraints.txt -e '.[browse]'`")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright.chromium.executable_path))
        found = look(browser, SITE, names or chosen(SITE), PICTURES)
    for title, wrong in found.items():
        print(f"{title}: {len(wrong) or 'no'} faults", *wrong, sep="\n    ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
