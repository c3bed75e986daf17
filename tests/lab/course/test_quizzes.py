"""The quizzes: solved copies are all correct, and a quiz as it is handed out does not tell its answers."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from minstate.lab.course import quiz
from minstate.lab.notebook.solutions import read_solutions

QUIZZES = Path(__file__).resolve().parents[3] / "notebooks" / "quizzes"
PARTS = sorted(QUIZZES.glob("part_*.ipynb"))


def questions(path: Path) -> dict[str, tuple[str, str]]:
    """The text of each question and the cell that marks it, by the cell's id."""
    cells = nbformat.read(path, as_version=4).cells
    texts = {cell.id.removesuffix("-text"): cell.source for cell in cells if cell.id.endswith("-text")}
    return {cell.id: (texts[cell.id], cell.source) for cell in cells if cell.id in texts}


def solved(section: str) -> object:
    """The answer that a section of the solutions computes."""
    space: dict = {}
    exec(section, space)
    return space["answer"]


def run(path: Path, answers: dict[str, object], capsys) -> list[str]:
    """What the cells of a quiz print, with `answers` in place of the dots."""
    quiz._marks.clear()
    space = {"answers": answers}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            source = cell.source.replace("= ...", f"= answers[{cell.id!r}]") if cell.id in answers else cell.source
            exec(source, space)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_solved_it_is_all_correct_and_else_not(path, capsys):
    sections = read_solutions(QUIZZES / "solutions" / f"{path.stem}.py")
    asked = questions(path)
    assert list(sections) == list(asked) and 6 <= len(asked) <= 8
    answers = {name: solved(section) for name, section in sections.items()}
    count = len(answers)
    assert run(path, answers, capsys) == ["correct"] * count + [f"{count} correct of {count} answered"]
    wrong = {name: "Z" if isinstance(answer, str) else answer + 1 for name, answer in answers.items()}
    assert run(path, wrong, capsys)[-1] == f"0 correct of {count} answered"
    untouched = run(path, {}, capsys)
    assert all(line.startswith("not answered yet") for line in untouched[:-1]) and untouched[-1][0] == "0"
    for name, answer in answers.items():
        text, cell = asked[name]
        if isinstance(answer, str):
            assert all(f"**{letter}.**" in text for letter in answer), f"{name} offers its answer"
        assert ast.parse(cell).body[0].value.value is ..., f"{name} is handed out without an answer"


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_every_answer_is_explained(path):
    for name, section in read_solutions(QUIZZES / "solutions" / f"{path.stem}.py").items():
        assert re.match(r"# .{40,}\n", section), f"{name} begins with a sentence or two"


def test_each_part_has_a_quiz():
    assert [path.stem for path in PARTS] == [f"part_{number}" for number in range(1, 7)]


def test_letters_count_in_any_order_and_fractions_to_three_digits():
    digest = quiz.digest_of("part_1/q7", "BD")
    assert digest == quiz.digest_of("part_1/q7", "d, b") != quiz.digest_of("part_1/q7", "B")
    assert digest != quiz.digest_of("part_2/q7", "BD"), "the same answer to another question has another digest"
    assert quiz.digest_of("q", 6.67) == quiz.digest_of("q", 20 / 3) != quiz.digest_of("q", 6.68)
    assert quiz.digest_of("q", 4980) == quiz.digest_of("q", 4980.0) != quiz.digest_of("q", 4979)
    with pytest.raises(TypeError, match="a letter, letters or a number"):
        quiz.digest_of("q", None)


def test_a_lecturer_gets_the_digest_of_a_new_question(capsys):
    quiz.main(["part_1/q1", "41"])
    quiz.main(["part_1/q3", "c"])
    digests = [quiz.digest_of("part_1/q1", 41), quiz.digest_of("part_1/q3", "C")]
    assert capsys.readouterr().out.split() == digests
