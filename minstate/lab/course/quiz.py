"""Marking the quizzes at the ends of the course's parts.

    mark("part_1/q3", answer, "0c1d…")      says whether an answer is right
    score()                                  how many questions of the quiz are answered, and how many correctly

A quiz holds digests of the right answers and not the answers, so reading its source gives nothing away by accident.
(Anyone can try all letters, of course: the quiz is for the one who answers.) A lecturer who changes a question gets
its new digest from `python -m minstate.lab.course.quiz part_1/q3 ANSWER`.
"""

import argparse
import hashlib

_marks: dict[str, bool] = {}  # by question; of the quiz that this process runs


def mark(question: str, answer: object, digest: str) -> None:
    """Print whether an answer is right. An answer that is `...` counts as not attempted.

    question  PART/QUESTION, which is mixed into the digest: equal answers to two questions have different digests
    answer    a letter, several letters in any order, or a number
    """
    if answer is ...:
        print("not answered yet: replace the ... and run this cell again")
        return
    _marks[question] = digest_of(question, answer) == digest
    print("correct" if _marks[question] else "not correct: read the question once more")


def score() -> None:
    """Print how many answers so far are correct."""
    print(f"{sum(_marks.values())} correct of {len(_marks)} answered")


def digest_of(question: str, answer: object) -> str:
    """16 hexadecimal digits that depend on the question and the answer. Fractions count to three significant digits."""
    if isinstance(answer, str):
        plain = "".join(sorted(set(answer.upper()) - set(" ,;")))
    elif isinstance(answer, int | float):
        plain = str(int(answer)) if float(answer).is_integer() else f"{answer:.3g}"
    else:
        raise TypeError(f"an answer is a letter, letters or a number, and not {answer!r}")
    return hashlib.sha256(f"{question}: {plain}".encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> None:
    """Print the digest of an answer that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.course.quiz", description="The digest of an answer.")
    parser.add_argument("question", help="such as part_1/q3")
    parser.add_argument("answer", help="letters or a number")
    given = parser.parse_args(arguments)
    answer = given.answer if given.answer.isalpha() else float(given.answer)
    print(digest_of(given.question, answer))


if __name__ == "__main__":
    main()
