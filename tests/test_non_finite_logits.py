"""Logits that are no numbers end the turn whose they are, with an error that says so, and no other turn."""

import copy

import pytest
import torch
from tiny import drafting, engine

from minstate import MinstateError, NonFiniteLogits, Sampling
from minstate.chat.grammar import Constraint
from minstate.sampling import choose

GREEDY = Sampling(ignore_eos=True)
NOISY = Sampling(temperature=1.0, seed=2, repetition_penalty=1.2, ignore_eos=True)
INF, NAN = torch.inf, torch.nan
DAMAGES = {  # what becomes of a row of logits
    "one NaN": lambda row: row.index_fill(0, torch.tensor([17]), NAN),
    "all NaN": lambda row: row * NAN,
    "one +inf": lambda row: row.index_fill(0, torch.tensor([17]), INF),
    "all -inf": lambda row: torch.full_like(row, -INF),
    "NaN and -inf": lambda row: row.fill_(-INF).index_fill(0, torch.tensor([17]), NAN),
}


def damaged(e, token, damage):
    """From now on, the logits behind `token` are damaged wherever it stands in a batch."""
    e.core.runner.model = copy.copy(e.model)
    forward = e.model.forward

    def broken(batch, attend):
        logits = forward(batch, attend).clone()
        for row, place in enumerate(batch.logit_rows.tolist()):
            if batch.token_ids[place] == token:
                logits[row] = damage(logits[row])
        return logits

    e.model.forward = broken


@pytest.mark.parametrize(
    "options", [{"sampling": GREEDY}, {"sampling": NOISY}, {"replay": [9] * 8}], ids=["greedy", "sampled", "replayed"]
)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("make", [engine, drafting])
def test_the_turn_ends_with_an_error_and_the_others_go_on(make, damage, options):
    e = make()
    ours, other = e.open(), e.open()
    ours.send(token_ids=[5] * 6, max_new_tokens=3, sampling=GREEDY)
    before, mark = ours.token_ids, ours.mark()
    alone = make().open().send(token_ids=[30, 31], max_new_tokens=9, sampling=GREEDY).token_ids
    damaged(e, 200, DAMAGES[damage])
    assert 200 not in alone
    bad = e.submit(ours, token_ids=[6, 7, 200], max_new_tokens=8, **options)
    good = e.submit(other, token_ids=[30, 31], max_new_tokens=9, sampling=GREEDY)
    while e.scheduler.requests:
        e.step()
        e.check()
    assert isinstance(bad.error, NonFiniteLogits) and "NaN" in str(bad.error) and "position 12" in str(bad.error)
    assert ours.token_ids == before and good.turn.token_ids == alone
    with pytest.raises(NonFiniteLogits):
        ours.send(token_ids=[200], max_new_tokens=8, **options)
    e.check()
    twin = make().open()
    twin.send(token_ids=[5] * 6, max_new_tokens=3, sampling=GREEDY)
    options = {"token_ids": [6, 7], "max_new_tokens": 4, "sampling": GREEDY}
    assert ours.send(**options).token_ids == twin.send(**options).token_ids
    ours.rollback(mark)


def test_the_error_is_that_of_an_arithmetic_operation():
    assert issubclass(NonFiniteLogits, MinstateError) and issubclass(NonFiniteLogits, FloatingPointError)


def test_it_may_happen_in_the_middle_of_an_answer():
    script = engine().open().send(token_ids=[5, 6], max_new_tokens=9, sampling=GREEDY).token_ids
    for make in (engine, drafting):
        e = make()
        damaged(e, script[4], DAMAGES["one NaN"])
        session = e.open()
        request = e.submit(session, token_ids=[5, 6], max_new_tokens=9, sampling=GREEDY)
        e.run()
        e.check()
        assert isinstance(request.error, NonFiniteLogits) and session.token_ids == []
        assert request.generated == list(script[: script.index(script[4]) + 1])


def test_a_rejected_draft_may_have_any_logits():
    """Behind [7, 8], the draft says 9 and 200; logits behind 200 are NaN, and the turn does not generate 200."""
    prompt = [7, 8, 9, 200, 11, 7, 8]
    said = engine().open().send(token_ids=prompt, max_new_tokens=4, sampling=GREEDY).token_ids
    e = drafting()
    damaged(e, 200, DAMAGES["all NaN"])
    session = e.open()
    session.sequence.speculator.ledger.base_ms = 1e12
    turn = session.send(token_ids=prompt, max_new_tokens=4, sampling=GREEDY)
    assert 200 in [guess.token_id for guess in turn.verdicts[0].draft] and turn.token_ids == said
    e.check()


@pytest.mark.parametrize("sampling", [GREEDY, NOISY])
def test_tokens_that_the_model_masks_are_no_error(sampling):
    """A vocabulary is often padded to a multiple of 64, and the padding's logits are −inf."""
    padded = torch.arange(259) >= 250
    e = engine()
    damaged(e, 5, lambda row: row.masked_fill(padded, -INF))
    turn = e.open().send(token_ids=[5], max_new_tokens=3, sampling=sampling, logprobs=True, top_logprobs=20)
    assert turn.stats.generated == 3 and max(turn.token_ids[:1]) < 250
    only = engine()
    damaged(only, 5, lambda row: row.masked_fill(torch.arange(259) != 77, -INF))
    turn = only.open().send(token_ids=[5], max_new_tokens=1, sampling=sampling, logprobs=True, top_logprobs=2)
    assert turn.token_ids == (77,) and turn.logprobs == (0.0,)
    assert turn.top_logprobs[0][0] == (77, 0.0) and turn.top_logprobs[0][1][1] == -INF


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_leaves_only_masked_tokens_is_an_error_of_the_model(temperature):
    e = engine(positions=4000, num_pages=800)
    session = e.open("hi")
    t, f = e.tokenizer.encode("tf", add_special_tokens=False)
    newline = e.tokenizer.encode("\n", add_special_tokens=False)[0]
    damaged(e, newline, lambda row: row.index_fill(0, torch.tensor([t, f]), -INF))
    request = e.submit(
        session, [], response_format={"type": "boolean"}, max_new_tokens=9, sampling=Sampling(temperature)
    )
    e.run()
    e.check()
    assert isinstance(request.error, NonFiniteLogits) and "grammar" in str(request.error)


def test_a_choice_under_a_mask_is_refused_only_if_no_token_is_left():
    class Only(Constraint):
        def __init__(self, *allowed):
            self.forced, self.ended, self.allowed = (), False, allowed

        def allows(self, token):
            return token in self.allowed

        def mask(self, vocab_size):
            return torch.isin(torch.arange(vocab_size), torch.tensor(self.allowed)).numpy()

    logits = torch.tensor([3.0, -INF, -INF, 1.0])
    for sampling in (GREEDY, NOISY):
        assert choose(logits, sampling, 0, Only(1, 3)) == 3
        with pytest.raises(NonFiniteLogits, match="grammar"):
            choose(logits, sampling, 0, Only(1, 2))
