"""The checker of exercises: an untouched stub passes, a wrong answer fails with a hint, a right one is confirmed."""

import pytest

from minstate.lab.notebook.exercise import check


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
    with pytest.raises(AssertionError, match=r"for \(1\) your answer is .*, not 2\. Count again"):
        check(answer, ((1,), 2), hint="Count again.")
