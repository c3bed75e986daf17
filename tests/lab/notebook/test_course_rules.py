"""The rules that every notebook of the course keeps, as far as a machine can check them."""

import ast
import re
from collections import Counter
from collections.abc import Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minstate.lab.figures.stack import PARTS
from minstate.lab.notebook.execute import describe
from minstate.lab.notebook.solutions import exercises
from minstate.lab.paths import NOTEBOOKS

ORDER = [
    "00_start_here", "01_build_a_cache", "01_prefill_decode_and_the_kv_cache", "02_build_pages", "02_paged_kv",
    "03_build_a_session", "03_the_delta_turn", "04_build_a_prefix_tree", "04_the_radix_tree", "05_templates_and_drift",
    "06_build_prompt_lookup", "06_speculation", "07_build_a_ragged_batch", "07_many_agents", "08_pressure_and_tiers",
    "09_one_kernel_two_machines", "10_the_claims", "11_whose_merit", "12_machines_and_money", "13_trust",
    "14_a_real_agent_at_the_door", "15_your_own_log",
]  # fmt: skip
COURSE = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
LINES, FIRST_LINES, PREDICTIONS, TOP = 25, 14, 5, 4
QUESTION = "**Predict.** "
FOLDED = {"predict", "hide-input"}  # tags of cells whose source is folded away
WORDS = {"00": 1050, **{f"{n:02}": 1900 for n in range(1, 10)}, "10": 1500, "11": 1500, "12": 1500}
WORDS |= {"13": 1200, "14": 1200, "15": 1200}  # of a reading notebook, roughly: see `SLACK`
SLACK = 1.15
OTHERS = ("minstate", "vLLM", "SGLang", "llama.cpp")
FIRST_LINE = re.compile(r"""predict\(r?(\"{3})?""")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def faults(stem: str, notebook: NotebookNode) -> Iterator[str]:
    """What a notebook does against the rules, a sentence each."""
    yield from faults_of_cells(notebook)
    yield from faults_of_predictions(notebook)
    yield from faults_of_exercises(notebook)
    yield from faults_of_the_end(stem, notebook)
    if "_build_" not in stem:
        yield from faults_of_a_reading_notebook(stem, notebook)
        words = sum(len(cell.source.split()) for cell in texts(notebook))
        if words > SLACK * WORDS[stem[:2]]:
            yield f"it has {words} words, and should have about {WORDS[stem[:2]]}"


def is_call_of(name: str, cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and re.search(rf"^(?:display\()?{name}\(", cell.source, re.MULTILINE) is not None


def faults_of_cells(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        count, most = len(cell.source.splitlines()), FIRST_LINES if cell is code[0] else LINES
        if count > most:
            yield f"{cell.id} has {count} lines, and may have {most}"
        if "NBVAL_" in cell.source:
            yield f"{cell.id}: instead of the comment, give it the tag nbval-ignore-output"
        tags = set(cell.metadata.get("tags", []))
        if tags & FOLDED and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"{cell.id} has the tag {' '.join(tags & FOLDED)}, and not metadata.jupyter.source_hidden"
    for name in describe(notebook):
        yield f"{name} has a figure, and its metadata no alt"


def faults_of_predictions(notebook: NotebookNode) -> Iterator[str]:
    cells = notebook.cells
    answers = [place for place, cell in enumerate(cells) if is_call_of("predict", cell)]
    if len(answers) > PREDICTIONS:
        yield f"it has {len(answers)} predictions, and may have {PREDICTIONS}"
    for place in answers:
        cell, above = cells[place], cells[place - 1]
        if "predict" not in cell.metadata.get("tags", []):
            yield f"{cell.id} calls predict, and has no tag predict"
        if not FIRST_LINE.fullmatch(cell.source.splitlines()[0]):
            yield f"{cell.id}: JupyterLab shows the first line of a folded cell, so the answer begins on the second"
        if above.cell_type != "markdown" or not above.source.startswith(QUESTION):
            yield f"{cell.id}: the cell above has to begin with {QUESTION}"
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and "**Predict.**" in cell.source and place + 1 not in answers:
            yield f"{cell.id} asks for a prediction, and no predict follows"


def faults_of_exercises(notebook: NotebookNode) -> Iterator[str]:
    titles = [title for cell in texts(notebook) for title in re.findall(r"^### Exercise.*", cell.source, re.MULTILINE)]
    for title in titles:
        if not re.fullmatch(r"### Exercise \d+ ★{1,3} · \S.*", title):
            yield f"{title!r} is not of the form: ### Exercise 2 ★★ · Title"
    if len(titles) > 4:
        yield f"it has {len(titles)} exercises, and may have four"
    if exercises(notebook) and not titles:
        yield "its exercises have no titles"


def faults_of_the_end(stem: str, notebook: NotebookNode) -> Iterator[str]:
    last = notebook.cells[-1].source.splitlines()[-1:] or [""]
    targets = [target.partition("#")[0] for target in LINK.findall(last[0])]
    following = ORDER[ORDER.index(stem) + 1 :][:1] if stem in ORDER else []
    if not targets or (following and f"{following[0]}.ipynb" not in targets):
        yield f"its last line has no link to {following[0] if following else 'what comes next'}"


def faults_of_a_reading_notebook(stem: str, notebook: NotebookNode) -> Iterator[str]:
    top = len(notebook.cells) if stem == "00_start_here" else TOP + 1  # 00 opens with what state saves
    if not any(is_call_of("stack_picture", cell) for cell in notebook.cells[:top]):
        yield f"none of its first {top} cells shows stack_picture(...)"
    if not any("what you will learn" in cell.source.lower() for cell in texts(notebook)[:3]):
        yield "it does not begin with what you will learn"
    whole = "\n\n".join(cell.source for cell in texts(notebook))
    headings = ("## Recap", "## Our terms and theirs", "## Read on")
    places = [whole.find(f"\n{heading}\n") for heading in headings]
    if -1 in places or places != sorted(places):
        yield f"it does not end with {', '.join(headings)}"
        return
    table = next((line for line in whole[places[1] :].splitlines() if line.startswith("|")), "")
    if not all(name in table for name in OTHERS):
        yield f"the table of terms has no columns {', '.join(OTHERS)}"
    readings = [line for line in whole[places[2] :].splitlines() if re.match(r"[-*\d]\S* ", line) and LINK.search(line)]
    if len(readings) < 5:
        yield f"there are {len(readings)} links to read on, each on a line of a list, and not five"


def texts(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def read(stem: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


@pytest.mark.parametrize("stem", ORDER)
def test_a_notebook_keeps_the_rules(stem):
    found = list(faults(stem, read(stem)))
    assert not found, "\n".join(found)


def test_no_exercise_is_there_twice():
    names = Counter(name for stem in COURSE for name in exercises(read(stem)))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_notebooks_are_those_of_the_course():
    assert COURSE == ORDER


# ---- The rules find what is against them

END = """## Recap

It costs what is new.

## Our terms and theirs

| minstate | vLLM | SGLang | llama.cpp | the paper |
| --- | --- | --- | --- | --- |
| page | block | page | cell | block |

## Read on

- [One](https://a.org/1): why.
- [Two](https://a.org/2): why.
- [Three](https://a.org/3): why.
- [Four](https://a.org/4): why.
- [Five](https://a.org/5): why.

Next: [03](03_build_a_session.ipynb)"""


def good() -> NotebookNode:
    hidden = {"tags": ["predict"], "jupyter": {"source_hidden": True}}
    picture = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell("# 02 · Pages", id="title"),
        new_code_cell("from a import b", id="imports"),
        new_code_cell('stack_picture("pages")', id="stack", metadata={"alt": "A stack."}, outputs=[picture]),
        new_markdown_cell("**What you will learn**\n\n- pages", id="learn"),
        new_markdown_cell(f"{QUESTION}How many?", id="question"),
        new_code_cell('predict("""\nThree, since pages are whole.\n""")', id="answer", metadata=hidden),
        new_markdown_cell("### Exercise 1 ★★ · Pages", id="exercise"),
        new_code_cell('def f():\n    return ...\n\n\ncheck(f, "stub")', id="stub"),
        new_markdown_cell(END, id="end"),
    ]
    return new_notebook(cells=cells)


def change(cell: str, old: str, new: str):
    def apply(notebook: NotebookNode) -> None:
        (found,) = [each for each in notebook.cells if each.id == cell]
        assert old in found.source
        found.source = found.source.replace(old, new)

    return apply


def drop(cell: str, *keys: str):
    def apply(notebook: NotebookNode) -> None:
        (found,) = [each for each in notebook.cells if each.id == cell]
        if keys:
            del found.metadata[keys[0]]
        else:
            notebook.cells.remove(found)

    return apply


def test_a_good_notebook_has_no_faults():
    assert list(faults("02_paged_kv", good())) == []


@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (change("stub", "return ...", "x = 1\n" * 25), "stub has 30 lines, and may have 25"),
        (change("imports", "from a", "\n" * 14 + "from a"), "imports has 15 lines"),
        (change("stub", "def f", "# NBVAL_IGNORE_OUTPUT\ndef f"), "instead of the comment"),
        (drop("stack", "alt"), "stack has a figure"),
        (drop("answer", "jupyter"), "not metadata.jupyter.source_hidden"),
        (drop("answer", "tags"), "has no tag predict"),
        (change("question", QUESTION, "Think. "), "the cell above has to begin with"),
        (change("answer", "\n", ""), "the answer begins on the second"),
        (drop("answer"), "no predict follows"),
        (lambda notebook: notebook.cells.extend([notebook.cells[5]] * 5), "it has 6 predictions"),
        (change("exercise", "★★", ""), "is not of the form"),
        (change("exercise", "###", "####"), "exercises have no titles"),
        (change("end", "03_build", "04_build"), "no link to 03_build_a_session"),
        (drop("stack"), "shows stack_picture"),
        (drop("learn"), "what you will learn"),
        (change("learn", "- pages", "word " * 2700), "words, and should have about 1900"),
        (change("end", "## Recap", "## Summary"), "it does not end with ## Recap"),
        (change("end", "SGLang", "Orca"), "the table of terms"),
        (change("end", "- [Two](https://a.org/2): why.\n", ""), "there are 4 links"),
    ],
)
def test_a_fault_is_found(break_it, fault):
    notebook = good()
    break_it(notebook)
    assert any(fault in each for each in faults("02_paged_kv", notebook)), list(faults("02_paged_kv", notebook))


@pytest.mark.parametrize("stem", [stem for stem in COURSE if "_build_" not in stem])
def test_the_place_in_the_stack_is_one_that_the_picture_has(stem):
    for cell in read(stem).cells:
        if is_call_of("stack_picture", cell):
            calls = [each for each in ast.walk(ast.parse(cell.source)) if isinstance(each, ast.Call)]
            calls = [each for each in calls if getattr(each.func, "id", "") == "stack_picture"]
            assert {each.value for call in calls for each in call.args if isinstance(each, ast.Constant)} <= set(PARTS)
