"""A guess comes before the answer, is kept, and stands beside it; where widgets do not run, a fold has the answer."""

import ipywidgets
import pytest

from minstate.lab.notebook import predict as module
from minstate.lab.notebook.predict import guess_widget, predict

ANSWER = "**3,000** tokens, since $n > \\Delta$ & nothing is kept."


@pytest.fixture(autouse=True)
def guesses(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "GUESSES", tmp_path / "work" / "guesses.json")
    return module.GUESSES


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(module, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def find(widget, kind) -> list:
    below = [each for child in getattr(widget, "children", ()) for each in find(child, kind)]
    return [widget, *below] if isinstance(widget, kind) else below


def commit(box, guess: str) -> None:
    (field,), (button,) = find(box, ipywidgets.Textarea), find(box, ipywidgets.Button)
    field.value = guess
    button.click()


def texts(box) -> str:
    return " ".join(each.value for each in find(box, (ipywidgets.HTML, ipywidgets.HTMLMath)))


def test_the_output_is_a_widget_a_fold_and_plain_text_the_latter_two_the_same_in_each_run(shown):
    predict(ANSWER)
    commit(guess_widget(ANSWER), "5")
    predict(ANSWER)
    one, two = shown
    assert one["text/plain"] == ANSWER
    assert one["text/html"].startswith("<details>") and "<strong>3,000</strong>" in one["text/html"]
    assert "$n &gt; \\Delta$" in one["text/html"], "formulas are left to the page"
    widget = "application/vnd.jupyter.widget-view+json"
    assert one.pop(widget)["model_id"] != two.pop(widget)["model_id"] and one == two


def test_no_answer_is_shown_before_a_guess(guesses):
    box = guess_widget(ANSWER)
    assert "3,000" not in texts(box)
    commit(box, "  ")
    assert "3,000" not in texts(box) and not guesses.exists()
    commit(box, "five <b>hundred</b>")
    assert "five &lt;b&gt;hundred" in texts(box) and "3,000" in texts(box)
    assert not find(box, ipywidgets.Button), "a guess is committed once"


def test_a_guess_is_there_again_when_the_notebook_is_reopened():
    commit(guess_widget(ANSWER), "500")
    commit(guess_widget("Another answer."), "7")
    assert "500" in texts(guess_widget(ANSWER)) and "3,000" in texts(guess_widget(ANSWER))
    assert not texts(guess_widget("A third."))


@pytest.mark.parametrize("damage", ["", "{", "[1]"])
def test_a_damaged_file_of_guesses_stops_nobody(guesses, damage):
    guesses.parent.mkdir()
    guesses.write_text(damage)
    commit(guess_widget(ANSWER), "500")
    assert "500" in texts(guess_widget(ANSWER))
