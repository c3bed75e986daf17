"""Notebooks in a real browser: run all in JupyterLab, move every widget, make every guess, take a screenshot of it all.

    python -m minstate.lab.notebook.browse notebooks/02_*.ipynb        # the whole course, if no notebook is named

It needs the extra `browse`, and Chromium: the program that the variable CHROMIUM names, one on the path, or the one
that `python -m playwright install chromium` fetched. JupyterLab runs on copies of the notebooks, with settings of its
own, so your notebooks and settings stay as they are. Screenshots go to `out/browse/`. The exit status is 1 if a cell
failed or did not run, if a control did not move or its picture stayed the same, if a guess brought no answer, if a
widget, formula or picture is not shown, or if a script failed. Your own guesses stay as they are.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from PIL import Image
from tqdm import tqdm

from minstate.lab import paths
from minstate.lab.figures.palette import PAPER
from minstate.lab.notebook.predict import GUESSES

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

OUT = paths.OUT / "browse"
PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
PATIENCE = 180  # seconds that JupyterLab may take to start, and a kernel to start or to draw
SETTINGS = {  # show all cells at once, and ask no question about news
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
CONTROLS = {"play": ".widget-play > :first-child", "slider": ".noUi-handle", "dropdown": ".widget-dropdown select"}
# The open notebook, as JupyterLab holds it; the state of its kernel; the name of the cell that contains a node.
HELPERS = """
window.panel = () => [...(window.jupyterapp?.shell.widgets('main') ?? [])].find(each => each.sessionContext)
window.kernel = () => panel()?.sessionContext.session?.kernel?.status ?? 'none'
window.place = node => panel().content.widgets.filter(each => each.node.contains(node))
    .map((each) => `cell ${panel().content.widgets.indexOf(each) + 1} (${each.model.id})`).join()
"""
STATE = """() => {
    const code = panel().content.widgets.map(each => each.model)
        .filter(each => each.type === 'code' && each.sharedModel.getSource().trim())
    const done = !!window.done && kernel() === 'idle' && code.every(each => each.executionState !== 'running')
    const stuck = document.querySelector('.jp-Dialog')?.innerText ?? (/idle|busy/.test(kernel()) ? '' : kernel())
    return {cells: code.length, ran: code.filter(each => each.executionCount).length, done, stuck} }"""
FAULTS = """() => {
    const failed = ({node, model}) => (model.toJSON().outputs ?? []).filter(each => each.output_type === 'error')
        .map(({ename, evalue}) => `${place(node)}: ${ename}: ${evalue}`)
    const odd = (what, selector, test = () => true) => [...panel().node.querySelectorAll(selector)].filter(test)
        .map(node => `${place(node)}: no ${what}: ${node.textContent || node.src}`)
    return [...panel().content.widgets.flatMap(failed), ...odd('formula', 'mjx-merror'),
        ...odd('widget', '.jp-OutputArea-output', node => /^(Error|Loading)[a-z ]* widget/.test(node.textContent)),
        ...odd('picture', 'img', node => !node.naturalWidth)] }"""
# The picture beside a control, as text, as soon as it differs from `seen`; or `seen`, after a minute.
PICTURE = """async (control, seen) => {
    const image = control.closest('.jp-OutputArea-output').querySelector('img')
    const read = () => image.decode().then(() => fetch(image.src)).then(each => each.text()).catch(() => seen)
    for (let tries = 0; image && tries < 300; tries++) {
        const now = await read()
        if (now !== seen) return now
        await new Promise(after => setTimeout(after, 200)) }
    return seen }"""


def lay_out(notebooks: list[Path], folder: Path) -> None:
    """Make `folder` look like the repository, but for `notebooks`, which are copies without outputs."""
    (folder / "notebooks").mkdir(parents=True)
    for entry in paths.clone_for("lab.notebook.browse").iterdir():
        if entry.name != "notebooks" and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for path in notebooks:
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
        nbformat.write(notebook, folder / "notebooks" / path.name)


@contextmanager
def laboratory(root: Path, own: Path) -> Iterator[str]:
    """Run JupyterLab on `root`, on a free port, with its settings in `own`. Yields a notebook's URL, with `{name}`."""
    overrides = own / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    folders = {f"JUPYTER_{name.upper()}_DIR": str(own / name) for name in ("config", "data", "runtime")}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command = [sys.executable, "-m", "jupyterlab", "--expose-app-in-browser", *options]
    environment = {**os.environ, **folders, "IPYTHONDIR": str(own / "ipython")}
    with (own / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not (found := list((own / "runtime").glob("jpserver-*.json"))):  # written once it listens
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"JupyterLab did not start:\n{(own / 'log').read_text()[-3000:]}")
            time.sleep(0.2)
        server = json.loads(found[0].read_text())
        yield f"{server['url']}doc/tree/notebooks/{{name}}?token={server['token']}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def chromium(fetched: str) -> str:
    """The program to start; `fetched` is playwright's own. If there is none, SystemExit says how to get one."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else [*PROGRAMS, fetched]
    found = [path for path in map(shutil.which, names) if path]
    advice = "install Chromium, or name a program in the variable CHROMIUM, or: python -m playwright install chromium"
    return found[0] if found else sys.exit(f"found none of the programs {', '.join(names)}: {advice}")


def run_all(page: "Page", name: str) -> list[str]:
    """Run all cells, and wait until none is pending and the kernel is idle. Returns a fault, if there is one."""
    page.wait_for_function("kernel() === 'idle' || document.querySelector('.jp-Dialog')")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.done = true })")
    with tqdm(desc=name, total=page.evaluate(STATE)["cells"], unit="cell", leave=False) as bar:
        while not ((state := page.evaluate(STATE))["done"] or state["stuck"]):
            bar.update(state["ran"] - bar.n)
            page.wait_for_timeout(500)
    if state["ran"] == state["cells"] and not state["stuck"]:
        return []
    return [f"{state['ran']} of {state['cells']} cells ran: {state['stuck'] or 'one of them failed'}"]


def moves(control: "Locator", kind: str) -> Iterator[str]:
    """Move a control from place to place. Yields the name of each move that changed its value."""
    if kind == "play":
        control.click()
        yield "play"
        control.locator("xpath=following-sibling::button[1]").click()  # stop
    elif kind == "dropdown":
        first, count = control.evaluate("each => [each.selectedIndex, each.options.length]")
        for index in [*(set(range(count)) - {first}), first]:
            control.select_option(index=index)
            yield f"entry {index + 1}"
    else:
        for key in ("Home", "End", "ArrowLeft"):
            before = control.get_attribute("aria-valuenow")
            control.press(key)
            if control.get_attribute("aria-valuenow") != before:
                yield key


def move(page: "Page", control: "Locator", kind: str) -> list[str]:
    """Move one control. Returns its faults, such as a picture beside it that stays the same."""
    name, seen, done = f"{control.evaluate('place')}: {kind}", control.evaluate(PICTURE), None
    for done in moves(control, kind):
        if seen is not None and control.evaluate(PICTURE, seen) == seen:
            return [f"{name}, {done}: the picture stays the same"]
        page.wait_for_timeout(500)  # if there is more to draw, the kernel is busy by now
        page.wait_for_function("kernel() === 'idle'")
        seen = control.evaluate(PICTURE)
    page.wait_for_timeout(1000)  # the first picture, after the stop of a play button
    return [] if done else [f"{name}: it can't be moved"]


def guess_all(page: "Page") -> list[str]:
    """Commit a guess at every *Predict* question. Returns a fault where no answer came."""
    buttons, wrong = page.get_by_role("button", name="Commit", exact=True), []
    for button in buttons.all()[::-1]:  # an answer takes the place of its button: those before it keep their numbers
        place, answers = button.evaluate("place"), page.get_by_text("The answer", exact=True).count()
        button.locator("xpath=..").locator("textarea").fill("seven")
        button.click()
        page.wait_for_timeout(500)
        page.wait_for_function("kernel() === 'idle'")
        if page.get_by_text("The answer", exact=True).count() == answers:
            wrong.append(f"{place}: a guess brought no answer")
    return wrong


@contextmanager
def guesses_aside() -> Iterator[None]:
    """Lay the reader's guesses aside meanwhile."""
    aside = GUESSES.with_suffix(".aside")
    if GUESSES.exists():
        GUESSES.rename(aside)
    try:
        yield
    finally:
        GUESSES.unlink(missing_ok=True)
        if aside.exists():
            aside.rename(GUESSES)


def photograph(page: "Page", path: Path) -> None:
    """Write the whole notebook as one PNG file, from as many screenshots as scrolling through it takes."""
    view = page.locator(".jp-WindowedPanel-outer")
    width, height, step = view.evaluate("each => [each.clientWidth, each.scrollHeight, each.clientHeight]")
    whole = Image.new("RGB", (width, height), PAPER)
    for top in range(0, height, step):
        reached = view.evaluate("(each, top) => { each.scrollTop = top; return Math.round(each.scrollTop) }", top)
        page.wait_for_timeout(250)  # until it is drawn
        whole.paste(Image.open(BytesIO(view.screenshot())), (0, reached))
    whole.save(path)


def look_at(page: "Page", address: str, picture: Path) -> tuple[int, list[str]]:
    """Run the notebook, move its widgets, write its screenshot. Returns the number of its controls, and all faults."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"script: {error}"))
    page.on("console", lambda message: errors.append(f"console: {message.text}") if message.type == "error" else None)
    page.set_default_timeout(PATIENCE * 1000)
    page.add_init_script(HELPERS)
    page.goto(address)
    wrong = run_all(page, picture.stem)
    controls = [(each, kind) for kind, selector in CONTROLS.items() for each in page.locator(selector).all()]
    for control, kind in tqdm(controls, desc=f"{picture.stem}, widgets", leave=False):
        wrong += move(page, control, kind)
    wrong += guess_all(page)
    photograph(page, picture)
    wrong += page.evaluate(FAULTS)
    page.evaluate("panel().sessionContext.shutdown()")
    return len(controls), wrong + list(dict.fromkeys(errors))


def main(notebooks: list[Path]) -> int:
    """Look at each notebook, or at the whole course. Returns an exit status; SystemExit says what is missing."""
    paths.clone_for("lab.notebook.browse")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        sys.exit("playwright is not installed: `make browse`, or `pip install -c constraints.txt -e '.[browse]'`")
    OUT.mkdir(parents=True, exist_ok=True)
    notebooks, faults = notebooks or sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")), 0
    with TemporaryDirectory() as temporary, guesses_aside(), sync_playwright() as playwright:
        program, folder = chromium(playwright.chromium.executable_path), Path(temporary)
        lay_out(notebooks, folder / "course")
        with laboratory(folder / "course", folder) as address:
            browser = playwright.chromium.launch(executable_path=program)
            for path in notebooks:
                page, start = browser.new_page(viewport={"width": 1280, "height": 2000}), time.monotonic()
                try:
                    controls, wrong = look_at(page, address.format(name=path.name), OUT / f"{path.stem}.png")
                except Error as error:  # the browser could not do a step
                    controls, wrong = 0, [str(error)]
                page.close()
                faults += len(wrong)
                seen = f"{controls} controls moved, {len(wrong) or 'no'} faults, {time.monotonic() - start:.0f} s"
                print(f"{path.name}: {seen}", *wrong, sep="\n    ", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
