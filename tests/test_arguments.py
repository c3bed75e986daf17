"""Scalars of NumPy and torch are numbers wherever a number is accepted; what is kept is a number of Python's own."""

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny import FLAT, engine, model, tokenizer

from minstate import BadMessage, BadValue, Engine, Sampling, Speculation
from minstate.arguments import real_number, token_ids_of, whole_number
from minstate.turn import TurnOptions

WHOLE = [np.int8, np.int64, np.uint16, np.array, torch.tensor, lambda n: torch.tensor(n).byte()]
REAL = [np.float16, np.float32, np.float64, np.longdouble, torch.tensor, lambda x: torch.tensor(x).bfloat16()]
BOOLS = [True, np.True_, np.array(True), torch.tensor(True)]


class Index:
    def __index__(self):
        return 3

    def __le__(self, other):
        return other >= 3

    def __ge__(self, other):
        return other <= 3


@pytest.mark.parametrize("scalar", [*WHOLE, Index, int], ids=lambda kind: getattr(kind, "__name__", ""))
def test_whole_numbers_of_any_kind(scalar):
    three = scalar() if scalar is Index else scalar(3)
    assert whole_number("n", three, 0, 3) == 3 and type(whole_number("n", three)) is int
    ids = token_ids_of("ids", [three, 4], 9)
    assert ids == [3, 4] and all(type(i) is int for i in ids)
    for low, high in ((4, 9), (0, 2)):
        with pytest.raises(BadValue, match=f"n must be a whole number from {low} to {high}, not"):
            whole_number("n", three, low, high)


@pytest.mark.parametrize(
    "scalar", [*REAL, *WHOLE, Fraction, float, int], ids=lambda kind: getattr(kind, "__name__", "")
)
def test_real_numbers_of_any_kind(scalar):
    one = scalar(1) if scalar in [*WHOLE, Fraction, int] else scalar(1.0)
    assert real_number("x", one, 0, 1) == 1 and type(real_number("x", one, 0, 1)) is float
    assert real_number("x", one, 1) == 1
    with pytest.raises(BadValue, match="x must be a number above 1 up to 2, not"):
        real_number("x", one, 1, 2, above=True)


@pytest.mark.parametrize(
    "wrong", [*BOOLS, "3", None, 3j, [3], np.array([3]), torch.tensor([3]), b"3", np.str_("3")], ids=repr
)
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(BadValue):
        whole_number("n", wrong)
    with pytest.raises(BadValue):
        real_number("x", wrong)
    with pytest.raises(BadMessage, match="ids"):
        token_ids_of("ids", [wrong])


@pytest.mark.parametrize("array", [np.array, torch.tensor, tuple, iter, lambda ids: (np.int16(i) for i in ids)])
def test_ids_may_come_in_an_array(array):
    assert token_ids_of("ids", array([5, 6, 7])) == [5, 6, 7]
    session = engine().open()
    turn = session.send(token_ids=array([5, 6, 7]), replay=array([8, 9]))
    assert session.token_ids == [5, 6, 7, 8, 9] and turn.token_ids == (8, 9)
    assert all(type(i) is int for i in [*session.token_ids, *turn.token_ids])
    session.engine.check()


@pytest.mark.parametrize(
    "ids",
    [5, np.int64(5), [1.5], [np.float64(1)], np.array([1.0]), [True], np.array([True]), [[5]], np.array([[5]]),
     torch.tensor([[5]]), torch.tensor(5), [None], [-1], [259], np.array([259])],
    ids=repr,
)  # fmt: skip
def test_what_is_no_list_of_ids_is_refused(ids):
    session = engine().open()
    for options in ({"token_ids": ids}, {"token_ids": [5], "replay": ids}):
        with pytest.raises(BadMessage):
            session.send(**options)
    assert session.token_ids == []


NUMBERS = {
    "temperature": 1, "top_k": 3, "top_p": 1, "min_p": 0, "seed": 7, "repetition_penalty": 2, "presence_penalty": 1,
    "frequency_penalty": -1,
}  # fmt: skip


@pytest.mark.parametrize("scalar", [np.int8, torch.tensor, np.array, int])
def test_settings_of_any_kind_are_the_same_settings(scalar):
    ours = Sampling(**NUMBERS, stop=("x", 5), logit_bias={4: -1, 6: 2}, ignore_eos=True)
    keys = {scalar(4): scalar(-1), scalar(6): scalar(2)} if scalar is not np.array else {4: -1, 6: 2}
    stops = ["x", scalar(5)]
    theirs = Sampling(**{name: scalar(n) for name, n in NUMBERS.items()}, stop=stops, logit_bias=keys, ignore_eos=True)
    assert theirs == ours and repr(theirs) == repr(ours) and hash(theirs) == hash(ours)
    for each in fields(Sampling):
        assert type(getattr(theirs, each.name)) in (int, float, tuple, bool)
    assert Sampling(stop=scalar(5)).stop == (5,) and Sampling(stop=np.array([5, 6])).stop == (5, 6)
    mine = TurnOptions(max_new_tokens=scalar(4), timeout_s=scalar(9), top_logprobs=scalar(2))
    assert repr(mine) == repr(TurnOptions(max_new_tokens=4, timeout_s=9.0, top_logprobs=2))


@pytest.mark.parametrize("wrong", BOOLS, ids=repr)
def test_a_bool_is_no_number_anywhere(wrong):
    for name in NUMBERS:
        with pytest.raises(BadValue, match=name):
            Sampling(**{name: wrong})
    for name in ("max_new_tokens", "timeout_s", "top_logprobs"):
        with pytest.raises(BadValue, match=name):
            TurnOptions(**{name: wrong})
    for stop in (wrong, [wrong]):
        with pytest.raises(BadValue, match="stop"):
            Sampling(stop=stop)
    for bias in ({1: wrong}, *([{wrong: 1}] if wrong.__hash__ else [])):  # an array is no key of a mapping
        with pytest.raises(BadValue, match="logit_bias"):
            Sampling(logit_bias=bias)
    for name in ("page_size", "num_pages", "token_budget"):
        with pytest.raises(BadValue, match=name):
            Engine(model(), tokenizer(), **{name: wrong})
    for name in ("max_draft", "max_sequences"):
        with pytest.raises(BadValue, match=name):
            Speculation(FLAT, **{name: wrong})
    with pytest.raises(BadValue, match="eos_ids"):
        Engine(model(), tokenizer(), eos_ids=[wrong])
    with pytest.raises(BadValue, match="seconds"):
        engine().open().expect(wrong)


@pytest.mark.parametrize("scalar", [np.int64, torch.tensor])
def test_an_engine_of_such_sizes_runs_and_keeps_plain_ones(scalar):
    sizes = {"page_size": scalar(4), "num_pages": scalar(30), "token_budget": scalar(9), "eos_ids": [scalar(2)]}
    e = Engine(model(), tokenizer(), **sizes, speculation=Speculation(FLAT, scalar(5), scalar(2)))
    assert [type(n) for n in (e.pool.page_size, e.pool.allocator.num_pages, e.scheduler.token_budget)] == [int] * 3
    assert type(e.scheduler.speculation.max_draft) is type(e.scheduler.speculation.max_sequences) is int
    session = e.open()
    turn = session.send(
        token_ids=[scalar(5), scalar(6)] * 6, max_new_tokens=scalar(5), timeout_s=scalar(60),
        sampling=Sampling(scalar(1), seed=scalar(3), stop=[scalar(900)], ignore_eos=True),
    )  # fmt: skip
    assert turn.stats.generated == 5 and type(turn.stats.delta) is int
    session.expect(scalar(3))
    e.check()
