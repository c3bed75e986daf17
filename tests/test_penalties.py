"""Bias and penalties change the logits as their definitions say, at every position, whatever is drafted or evicted."""

from collections import Counter
from random import Random

import pytest
import torch
from tiny import VOCABULARY, drafting, engine, hf_model
from transformers import RepetitionPenaltyLogitsProcessor

from minstate import BadValue, Sampling, scheduler
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.sampling import Penalties, choose

GREEDY = Sampling(ignore_eos=True)
SETTINGS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.4},
    {"frequency_penalty": -2, "presence_penalty": 2},
    {"logit_bias": {7: 3.5, 40: -100, 41: 2}},
    {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.7, "logit_bias": {9: -4, 12: 4}},
]


def by_definition(logits: torch.Tensor, prompt: list[int], output: list[int], settings: dict) -> torch.Tensor:
    """Logits `[vocab]` with bias and penalties, written down anew, token by token and in floats of Python."""
    counts, bias, penalty = Counter(output), settings.get("logit_bias", {}), settings.get("repetition_penalty", 1)
    changed = [logit + bias.get(token, 0) for token, logit in enumerate(logits.tolist())]
    for token in {*prompt, *output}:
        changed[token] *= penalty if changed[token] < 0 else 1 / penalty
    for token, count in counts.items():
        changed[token] -= count * settings.get("frequency_penalty", 0) + settings.get("presence_penalty", 0)
    return torch.tensor(changed, dtype=torch.float64)


def naive(prompt: list[int], count: int, settings: dict, **noise) -> tuple[int, ...]:
    """What the model of transformers generates if each step computes everything from scratch."""
    output: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = hf_model("llama")(torch.tensor([prompt + output])).logits[0, -1]
        changed = by_definition(logits, prompt, output, settings)
        output.append(choose(changed, Sampling(**noise), len(prompt) + len(output)))
    return tuple(output)


@pytest.mark.parametrize("noise", [{}, {"temperature": 0.6, "seed": 3, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_engine_generates_what_a_naive_loop_does(settings, noise):
    sampling = Sampling(**settings, **noise, ignore_eos=True)
    prompts = [[7, 8, 9] * 3, [*range(20, 30)], [12] * 7]
    expected = [naive(prompt, 12, settings, **noise) for prompt in prompts]
    plain = [naive(prompt, 12, {}, **noise) for prompt in prompts]
    assert expected != plain, "the settings matter"
    for e in (engine(), engine(NaiveEngine), engine(PrefixReuseEngine), drafting(), drafting(token_budget=3)):
        requests = [e.submit(e.open(), token_ids=ids, max_new_tokens=12, sampling=sampling) for ids in prompts]
        e.run()
        e.check()
        assert [request.turn.token_ids for request in requests] == expected


def test_drafts_are_accepted_and_rejected_under_penalties():
    """A draft repeats what was generated before, with the counts of another turn: those differ inside the draft."""
    settings = {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.3}
    sampling, accepted, rejected = Sampling(**settings, ignore_eos=True), 0, 0
    for start in range(20, 60, 4):
        prompt, e = [*range(start, start + 6)] * 2, drafting()
        for _ in range(2):
            session = e.open()
            session.sequence.speculator.ledger.base_ms = 1e12
            turn = session.send(token_ids=prompt, max_new_tokens=16, sampling=sampling)
            e.check()
            assert turn.token_ids == naive(prompt, 16, settings)
            accepted += turn.stats.accepted
            rejected += turn.stats.drafted - turn.stats.accepted
    assert accepted > 100 and rejected > 50


def test_a_repetition_penalty_sees_old_turns_and_the_other_penalties_do_not():
    e = engine()
    for settings in ({"repetition_penalty": 1.4}, {"presence_penalty": 2}, {"frequency_penalty": 2}):
        session, prompt = e.open(), [7, 8, 9]
        for _ in range(3):
            turn = session.send(token_ids=prompt, max_new_tokens=6, sampling=Sampling(**settings, ignore_eos=True))
            log = session.token_ids[:-6]
            assert turn.token_ids == naive(log, 6, settings)
            prompt = [5]


@pytest.mark.parametrize("seed", range(4))
def test_evicted_and_preempted_turns_generate_the_same_tokens(seed, monkeypatch):
    monkeypatch.setattr(scheduler, "GROWTH", 0)  # admits without looking ahead, so that pages run out
    draw = Random(seed)
    samplings = [Sampling(draw.choice([0, 1]), **own, ignore_eos=True) for own in draw.sample(SETTINGS, 3)]
    asked = [([draw.randrange(3, 12) for _ in range(8)], sampling) for sampling in samplings]
    alone = [engine().open().send(token_ids=i, max_new_tokens=30, sampling=s).token_ids for i, s in asked]
    for e in (engine(num_pages=14), drafting(num_pages=14)):
        requests = [e.submit(e.open(), token_ids=i, max_new_tokens=30, sampling=s) for i, s in asked]
        while e.scheduler.requests:
            e.step()
            e.check()
        assert sum(request.preempted for request in requests) > 0
        assert [request.turn.token_ids for request in requests] == alone


def test_a_constrained_reply_is_chosen_among_the_allowed_tokens_by_the_changed_logits():
    """A choice between true and false is turned by a bias, though neither is likely."""
    for e in (engine(positions=4000, num_pages=800), drafting(positions=4000, num_pages=800)):
        t, f = e.tokenizer.encode("tf", add_special_tokens=False)
        for bias, text in [({t: 100, f: -100}, "true"), ({t: -100, f: 100}, "false")]:
            for temperature in (0.0, 1.0):
                sampling = Sampling(logit_bias=bias, temperature=temperature)
                turn = e.open("hi").send([], response_format={"type": "boolean"}, max_new_tokens=9, sampling=sampling)
                assert turn.text == text


@pytest.mark.parametrize("penalty", [0.5, 1.1, 3.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn(50, generator=draw, dtype=torch.float64) * 5
        log = torch.randint(0, 50, (30,), generator=draw)
        ours = Penalties(Sampling(repetition_penalty=penalty), log[:12].tolist(), 50)
        for token in log[12:].tolist():
            ours.generated[token] += 1
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(log[None], logits[None].clone())[0]
        assert torch.equal(ours.apply(logits), theirs)


def test_the_draws_follow_the_changed_softmax():
    logits, settings = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -30.0]), SETTINGS[-1] | {"logit_bias": {3: 1, 0: -0.5}}
    sampling = Sampling(**settings, temperature=0.8, seed=5)
    penalties = Penalties(sampling, [0, 4, 4], 6)
    penalties.generated[1] = 2
    counts = torch.zeros(6)
    for position in range(4000):
        counts[choose(logits, sampling, position, penalties=penalties)] += 1
    changed = by_definition(logits, [0, 4, 4], [1, 1], settings)
    expected = 4000 * torch.softmax(changed / 0.8, 0)[:5]
    assert expected.min() > 5
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 18.5, "chi-square, 4 degrees of freedom, p = 0.001"


def test_masked_tokens_stay_masked():
    penalties = Penalties(Sampling(repetition_penalty=2, logit_bias={1: 100}), [0, 1], 3)
    penalties.generated[0] = 3
    assert penalties.apply(torch.tensor([-torch.inf, -torch.inf, 1.0])).tolist() == [-torch.inf, -torch.inf, 1.0]


def test_a_replayed_output_is_compared_with_the_models_own_choice():
    said = engine().open().send(token_ids=[5, 6], max_new_tokens=8, sampling=GREEDY).token_ids
    banned = Sampling(logit_bias=dict.fromkeys(said, -100))
    assert engine().open().send(token_ids=[5, 6], replay=said, sampling=banned).stats.agreed == 8


def test_without_penalties_none_are_set_up_and_the_known_arg_max_is_used():
    e = engine()
    request = e.submit(e.open(), token_ids=[5], max_new_tokens=2, sampling=Sampling(logit_bias={}, ignore_eos=True))
    e.run()
    assert request.penalties is None
    assert choose(torch.tensor([0.0, 1.0]), GREEDY, 0, best=0, penalties=Penalties(GREEDY, [], 2)) == 1


def test_the_log_is_read_once_a_turn(monkeypatch):
    made = []

    def counted(sampling, log, vocab_size):
        made.append(len(log))
        return Penalties(sampling, log, vocab_size)

    monkeypatch.setattr("minstate.output.Penalties", counted)
    e = engine(token_budget=9)
    e.open().send(token_ids=[5] * 30, max_new_tokens=20, sampling=Sampling(frequency_penalty=1, ignore_eos=True))
    assert made == [30]


def test_a_bias_on_a_token_that_the_vocabulary_lacks_changes_nothing():
    session = engine().open()
    session.send(token_ids=[5], max_new_tokens=2, sampling=GREEDY)
    before = session.token_ids
    with pytest.raises(BadValue, match=f"each id in logit_bias must be .* to {VOCABULARY - 1}, not {VOCABULARY}"):
        session.send(token_ids=[5], sampling=Sampling(logit_bias={VOCABULARY: 1}))
    assert session.token_ids == before and not session.running
    session.engine.check()


def test_settings_are_hashable_and_equal_in_any_order():
    one, two = Sampling(logit_bias={5: 1, 3: -2.5}), Sampling(logit_bias=[(3, -2.5), (5, 1.0)])
    assert one == two and hash(one) == hash(two) and one.logit_bias == ((3, -2.5), (5, 1.0))
    assert one.for_fork((1,)).logit_bias == one.logit_bias


@pytest.mark.parametrize(
    "name, values",
    {
        "repetition_penalty": [0, -1, 0.001, 1000, float("nan"), "1", None, True],
        "presence_penalty": [-2.1, 2.1, float("nan"), None, False],
        "frequency_penalty": [-2.1, 2.1, float("inf")],
        "logit_bias": [None, 5, "ab", [1, 2], {-1: 0}, {1.5: 0}, {"1": 0}, {True: 0}, {1: 101}, {1: None}, {1: True}],
    }.items(),
)
def test_absurd_values_are_refused(name, values):
    for value in values:
        with pytest.raises(BadValue, match=name):
            Sampling(**{name: value})


# ---- The most likely tokens of each position


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(temperature=2.0, seed=1, top_k=5, **SETTINGS[-1], ignore_eos=True)]
)
def test_top_logprobs_are_those_of_a_plain_forward_pass(sampling):
    e, prompt = drafting(), [*range(20, 30)] * 2
    for _ in range(2):  # the second time with drafts from the first
        turn = e.open().send(token_ids=prompt, max_new_tokens=9, sampling=sampling, logprobs=True, top_logprobs=4)
        ids = [*prompt, *turn.token_ids]
        with torch.no_grad():
            rows = hf_model("llama")(torch.tensor([ids])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        assert len(turn.top_logprobs) == len(turn.logprobs) == 9
        for row, token, logprob, top in zip(rows, turn.token_ids, turn.logprobs, turn.top_logprobs, strict=True):
            values, best = row.topk(4)
            assert [i for i, _ in top] == best.tolist()
            assert [x for _, x in top] == pytest.approx(values.tolist(), abs=1e-5)
            assert logprob == pytest.approx(float(row[token]), abs=1e-5)
            assert type(top[0][0]) is int and type(top[0][1]) is float


def test_top_logprobs_are_there_only_if_asked_for_and_never_more_than_the_vocabulary_has():
    session = engine().open()
    turn = session.send(token_ids=[5], max_new_tokens=2, sampling=GREEDY, top_logprobs=2)
    assert turn.logprobs is None and [len(top) for top in turn.top_logprobs] == [2, 2]
    assert session.send(token_ids=[5], max_new_tokens=2, sampling=GREEDY, logprobs=True).top_logprobs is None
    replayed = session.send(token_ids=[5], replay=[9, 9], top_logprobs=1)
    assert len(replayed.top_logprobs) == 2 and replayed.stats.agreed == sum(
        token == top[0][0] for token, top in zip(replayed.token_ids, replayed.top_logprobs, strict=True)
    )
    for count in (-1, 21, 1.5, True, None):
        with pytest.raises(BadValue, match="top_logprobs"):
            session.send(token_ids=[5], top_logprobs=count)
