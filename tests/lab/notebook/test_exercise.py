"""The checker of exercises: an untouched stub passes, a wrong answer fails with a hint, a right one is confirmed."""

import json

import numpy as np
import pytest

from minstate.lab.notebook import exercise
from minstate.lab.notebook.exercise import check
from minstate.lab.notebook.hidden import canonical, digest, find_cases


def test_an_untouched_stub_is_no_failure(capsys):
    check(lambda x: ..., ((1,), 2))
    check(..., ((), 2))
    assert capsys.readouterr().out.count("not attempted yet") == 2


def test_a_right_answer_is_confirmed(capsys):
    check(lambda x: x / 3, ((1,), 0.33333333), ((3,), 1))
    check(42, ((), 42))
    assert "correct, in 2 of 2 cases" in capsys.readouterr().out


def test_none_may_be_the_right_answer(capsys):
    check(lambda x: x or None, ((0,), None), ((3,), 3))
    assert "correct, in 2 of 2 cases" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        check(lambda x: x, ((0,), None))
    check(lambda x: (x or None, [x]), ((0,), (None, [0])), ((1 / 3,), (0.33333333, [0.33333333])))
    with pytest.raises(AssertionError):
        check(lambda x: (x, [x]), ((0,), (None, [0])))


@pytest.mark.parametrize("answer", [lambda x: x, lambda x: None, 7])
def test_a_wrong_answer_fails_with_the_case_and_a_hint(answer):
    with pytest.raises(AssertionError, match=r"(answer\(x=1\)|your answer) is .*, not 2\. Count again"):
        check(answer, ((1,), 2), hint="Count again.")


# ---- Hidden cases


def total(numbers: list[float], each: float | None = None):
    return sum(numbers) if each is None else each * len(numbers)


CASES = [([1, 2, 3],), ([0.1, 0.2],), ([], 4), ([7, 8], 1.5), ([10**9, 1],)]


@pytest.fixture(autouse=True)
def cases(tmp_path, monkeypatch):
    pairs = [[text := repr(each), digest("total", text, total(*each))] for each in CASES]
    (tmp_path / "00_one.json").write_text(json.dumps({"other": []}))
    (tmp_path / "01_two.json").write_text(json.dumps({"total": pairs}))
    monkeypatch.setattr(exercise, "find_cases", lambda name: find_cases(name, tmp_path))


def test_a_right_answer_passes_hidden_cases_and_rounding_does_not_matter(capsys):
    check(total, "total")
    check(lambda numbers, each=None: np.float64(total(numbers, each) * (1 + 1e-14)), "total")
    assert capsys.readouterr().out == "correct, in 5 of 5 cases\n" * 2


@pytest.mark.parametrize(
    ("wrong", "call"),
    [
        (lambda numbers, each=None: sum(numbers), r"\(numbers=\[7, 8\], each=1.5\) is 15, "),
        (lambda numbers, each=None: total(numbers, each) * 1.00001, r"\(numbers=\[1, 2, 3\]\) is 6.00006, "),
        (lambda numbers, each=None: str(total(numbers, each)), r"\(numbers=\[1, 2, 3\]\) is '6', "),
        (lambda numbers, each=None: min(total(numbers, each), 10**9), r"\(numbers=\[1000000000, 1\]\) is 1000000000, "),
        (lambda numbers, each=None: iter(numbers), r"\(numbers=\[1, 2, 3\]\) is <list_iterator"),
        (6, "your answer is 6, "),
    ],
)
def test_a_wrong_answer_is_shown_with_its_arguments_and_the_right_one_is_not(wrong, call):
    with pytest.raises(AssertionError, match=call) as caught:
        check(wrong, "total", hint="Add up.")
    message = str(caught.value)
    assert message.endswith("which is wrong. Add up.") and "not " not in message


def test_an_exception_is_shown_with_the_arguments_and_its_cause():
    def first(numbers, each=None):
        return total(numbers, each) if each else numbers[3]

    with pytest.raises(AssertionError, match=r"first\(numbers=\[1, 2, 3\]\) raises IndexError: .*Add up") as caught:
        check(first, "total", hint="Add up.")
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_function_with_other_parameters_is_told_so():
    with pytest.raises(AssertionError, match=r"answer\(\[\], 4\) raises TypeError"):
        check(lambda numbers: sum(number for number in numbers), "total")


def test_an_answer_that_changes_its_arguments_is_shown_what_it_was_given():
    with pytest.raises(AssertionError, match=r"\(numbers=\[1, 2, 3\]\) is None"):
        check(lambda numbers, each=None: numbers.clear(), "total")


def test_an_untouched_stub_passes_and_an_exercise_that_is_not_there_is_named(capsys):
    check(lambda numbers, each=None: ..., "total")
    assert capsys.readouterr().out == "not attempted yet: replace the ... and run this cell again\n"
    with pytest.raises(LookupError, match="cases of the exercise 'totals'"):
        check(total, "totals")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (3, 3.0), (True, 1), (0.1 + 0.2, 0.3), ((1, [2]), [1, (2,)]), (np.array([1.0, 2.5]), [1, 2.5]), (-0.0, 0),
        ({"b": 1, "a": 2}, {"a": 2.0, "b": 1}), ({1, 2}, {2, 1}), (1 / 3, 0.33333334), (range(3), [0, 1, 2]),
        (1e20 / 3, 1e20 / 3 * (1 + 1e-15)), (16_000_000_000, 16e9 * (1 + 1e-15)),
    ],
)  # fmt: skip
def test_results_that_are_equal_up_to_rounding_have_one_text(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (3, "3"), (None, "None"), (None, 0), ([1], 1), ([1, 2], [2, 1]), (1_234_567, 1_234_568), (0.333333, 0.333334),
        ("a", ["a"]), ([[1], 2], [1, 2]), ({1: 2}, {"1": 2}), ([], ""), (float("nan"), 0.0), ({1}, [1]),
    ],
)  # fmt: skip
def test_other_results_have_another_text(one, other):
    assert canonical(one) != canonical(other)
