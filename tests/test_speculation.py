"""Speculation says what the model would have said without it, costs what it may, and leaves no trace where it fails."""

import contextlib
import copy
import itertools
import random
from collections import Counter

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FLAT, IDS, SAMPLINGS, STEEP, VOCABULARY, drafting, engine, hf_model

from minstate import BadValue, BrokenInvariant, ContextOverflow, CostTable, Engine, Sampling, Speculation
from minstate.draft_budget import REGRET
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.output import OutputProcessor
from minstate.paged_kv import PageTable
from minstate.prompt_lookup import Corpus, NgramIndex
from minstate.speculation import (
    CORPUS,
    GRAMMAR,
    LOG,
    Acceptance,
    Guess,
    Speculator,
    Verdict,
    band,
)

GREEDY = Sampling(ignore_eos=True)
TOKENS, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 512), (0, 1024)
MEASURED = CostTable(  # in shape as measured: the second token costs a tenth of the first
    TOKENS, CONTEXTS, ((52, 58, 66, 82, 105, 150, 250, 1400), (60, 66, 75, 92, 118, 170, 280, 1450))
)
DEAR = CostTable(  # in bfloat16, where one token has a way of its own
    TOKENS, CONTEXTS, ((32, 62, 68, 80, 100, 145, 245, 1400), (40, 70, 78, 92, 118, 170, 280, 1450))
)
TOOL = tiny.LOOK


def texts(e):
    return lambda text: e.tokenizer.encode(text, add_special_tokens=False)


def say(session, ids, count=12, sampling=GREEDY, **options):
    return session.send(token_ids=ids, max_new_tokens=count, sampling=sampling, **options)


def rich(session):
    """The session, with a ledger that allows anything: from its first pass on, when others have earned nothing yet."""
    session.sequence.speculator.ledger.base_ms = 1e12
    return session


def roomy(cls=Engine, **settings):
    """An engine for messages and tools, which take hundreds of a byte tokenizer's tokens."""
    return drafting(cls, num_pages=800, positions=4000, **settings)


def rejected(stats):
    return stats.drafted - stats.accepted


def ended_inside(turn):
    """Whether the turn ended with a token of a draft: it is said and has K/V, which no other last token has."""
    return turn.verdicts[-1].accepted == len(turn.verdicts[-1].sampled)


def guesses(turn, source):
    return [guess for verdict in turn.verdicts for guess in verdict.draft if guess.source == source]


def recorded(e):
    """The (query tokens, tokens of K/V) of every pass of an engine from now on."""
    passes, e.core.runner.model = [], copy.copy(e.model)
    forward = e.model.forward

    def counted(batch, attend):
        passes.append((len(batch.token_ids), int(batch.context_len.sum())))
        return forward(batch, attend)

    e.model.forward = counted
    return passes


def price(passes, table):
    return sum(table.at(context)(tokens) for tokens, context in passes)


def require_index(session):
    """The session's index is that of its log, as far as it has been taken up: an oracle of its own."""
    index, log = session.sequence.speculator.index, session.token_ids
    fresh = NgramIndex()
    fresh.extend(log[: len(index._before)])
    assert (index._last, index._before) == (fresh._last, fresh._before)


class Scripted:
    """Instead of a model: at each position of a log the token that stands there in a script."""

    def __init__(self, monkeypatch, script=()):
        self.script = list(script)
        monkeypatch.setattr("minstate.output.choose", lambda logits, sampling, position, *_: self.script[position])


# ---- The same output


PATTERNS = st.builds(
    lambda part, times: part * times, st.lists(st.integers(3, 9), min_size=1, max_size=4), st.integers(1, 6)
)
PROMPTS = st.one_of(PATTERNS, IDS)
TURNS = st.fixed_dictionaries(
    {
        "token_ids": PROMPTS,
        "max_new_tokens": st.integers(1, 20),
        "sampling": SAMPLINGS,
        "replay": st.one_of(st.none(), st.none(), PATTERNS, IDS),
        "tool_choice": st.sampled_from([None, None, "auto", "required", "none"]),
    }
)
BETWEEN = st.one_of(
    st.tuples(st.just("turns"), st.lists(st.tuples(st.integers(0, 9), TURNS), min_size=1, max_size=3)),
    st.tuples(st.just("open again"), st.sampled_from("AAB")),
    st.tuples(st.just("fork"), st.integers(0, 9)),
    st.tuples(st.just("roll back"), st.integers(0, 9)),
    st.tuples(st.just("abort"), st.tuples(st.integers(0, 9), TURNS, st.integers(1, 4))),
    st.tuples(st.just("evict"), st.integers(1, 20)),
)
PLANS = st.builds(
    lambda first, then: [("turns", [(0, first)]), ("open again", "A"), *then], TURNS, st.lists(BETWEEN, max_size=5)
)


def play(e, plan, allowed=lambda session: session):
    """What an engine answers, whatever happens between the turns; and all logs."""
    sessions, marks, firsts, answers = [allowed(e.open(tenant="A"))], {}, [], []

    def options(session, turn):
        known = {} if turn["tool_choice"] is None else {"tools": [TOOL]}
        return {**turn, **known, "logprobs": True, "top_logprobs": 3}

    def run(turns, steps=10**6):
        handles = {}
        for where, turn in turns:
            session = sessions[where % len(sessions)]
            if not session.running:
                marks[session] = session.mark()
                with contextlib.suppress(ContextOverflow):
                    handles[session] = e.submit(session, **options(session, turn))
        while steps and e.scheduler.running:
            e.step()
            e.check()
            steps -= 1
        for handle in handles.values():
            handle.abort()
        e.check()
        return [handle.turn for handle in handles.values()]

    for what, how in plan:
        if what == "turns":
            firsts += [how] * (len(sessions) == 1)
            answers += run(how)
        elif what == "abort":
            run([how[:2]], steps=how[2])
            session = sessions[how[0] % len(sessions)]
            session.rollback(marks[session])  # with drafts, the turn may have ended in as many steps
        elif what == "evict":
            e.cache.make_room(how)
        elif what == "open again" and len(sessions) < 5:
            sessions.append(allowed(e.open(tenant=how)))
            if firsts:
                answers += run([(len(sessions) - 1, turn) for _, turn in firsts[0][:1]])
        elif what == "fork" and len(sessions) < 5:
            sessions.append(allowed(sessions[how % len(sessions)].fork()))
        elif what == "roll back":
            session = sessions[how % len(sessions)]
            if session in marks:
                session.rollback(marks.pop(session))
                require_index(session) if session.sequence.speculator else None
    return answers, [session.token_ids for session in sessions]


@pytest.mark.parametrize("cls", [Engine, NaiveEngine, PrefixReuseEngine])
def test_drafts_never_change_what_is_said(cls):
    tally = Counter()

    @settings(max_examples=settings.default.max_examples // (1 if cls is Engine else 2))
    @given(
        plan=PLANS,
        allowed=st.sampled_from([rich, rich, lambda session: session]),
        max_draft=st.sampled_from([1, 3, 31, 200]),
        costs=st.sampled_from([FLAT, FLAT, MEASURED]),
        page_size=st.integers(1, 5),
        token_budget=st.sampled_from([1, 2, 5, 16, 512]),
        pages=st.sampled_from([1, 4]),
    )
    def compare(plan, allowed, max_draft, costs, page_size, token_budget, pages):
        sizes = {"page_size": page_size, "token_budget": token_budget, "num_pages": pages * 3 * 256 // page_size}
        plain, logs = play(engine(cls, **sizes), plan)
        turns, speculated_logs = play(drafting(cls, costs=costs, max_draft=max_draft, **sizes), plan, allowed)
        assert speculated_logs == logs
        for turn, other in zip(turns, plain, strict=True):
            assert turn.token_ids == other.token_ids
            assert (turn.text, turn.tool_calls, turn.finish_reason) == (
                other.text,
                other.tool_calls,
                other.finish_reason,
            )
            assert turn.logprobs == pytest.approx(other.logprobs, abs=1e-9)
            for mine, its in zip(turn.top_logprobs, other.top_logprobs, strict=True):
                assert dict(mine) == pytest.approx(dict(its), abs=1e-9)
            stats = turn.stats
            assert (stats.delta, stats.context, stats.agreed) == (
                other.stats.delta,
                other.stats.context,
                other.stats.agreed,
            )
            assert other.stats.drafted == 0 and stats.forwarded == (
                stats.prefilled + stats.generated - 1 + rejected(stats) + ended_inside(turn)
            )
            assert [token for verdict in turn.verdicts for token in verdict.sampled] == list(turn.token_ids)
            assert all(len(verdict.draft) <= max_draft for verdict in turn.verdicts)
            tally["accepted"] += stats.accepted
            tally["rejected"] += rejected(stats)
            tally["by the model itself"] += stats.accepted * (turn.finish_reason != "replay")
            for verdict in turn.verdicts:
                tally.update(guess.source for guess in verdict.draft)

    compare()
    sources = {GRAMMAR, LOG, CORPUS} - ({CORPUS} if cls is NaiveEngine else set())
    assert min(tally[what] for what in ("accepted", "rejected", "by the model itself", *sources)) > 0, tally


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=11, ignore_eos=True)])
def test_what_another_session_was_told_is_taken_from_the_corpus_at_one_go(sampling):
    """Random models seldom repeat themselves, but the same prompt has the same answer."""
    e = drafting(sources=(CORPUS,))
    sessions = [rich(e.open()) for _ in range(2)]
    first, again = [say(session, range(20, 30), 33, sampling) for session in sessions]
    assert again.token_ids == first.token_ids
    assert (again.stats.steps, again.stats.drafted, again.stats.accepted) == (2, 31, 31)
    assert again.stats.forwarded == again.stats.prefilled + 33 - 1
    assert {guess.source for verdict in again.verdicts for guess in verdict.draft} == {CORPUS}


@pytest.mark.parametrize("cls", [Engine, NaiveEngine, PrefixReuseEngine])
@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_drafts_do_not_change_a_constrained_reply_in_any_engine(cls, choice):
    said = []
    for e in (engine(num_pages=800, positions=4000), roomy(cls), roomy(cls, costs=MEASURED)):
        sessions = [e.open("You look.", tools=[TOOL]) for _ in range(2)]
        options = {"tool_choice": choice, "max_new_tokens": 40, "sampling": Sampling(temperature=0.7, seed=5)}
        turns = [session.send(text, **options) for text in ("look", "again") for session in sessions]
        e.check()
        said.append([turn.token_ids for turn in turns])
        if e.scheduler.speculation:
            assert sum(turn.stats.accepted for turn in turns) > 20 or (cls is NaiveEngine and choice != "required")
    assert said[0] == said[1] == said[2]


def test_probabilities_are_those_of_a_plain_forward_pass():
    prompt = [*range(20, 30)] * 3
    for sampling in (GREEDY, Sampling(temperature=2.0, top_k=5, seed=1, ignore_eos=True)):
        e = drafting()
        sessions = [rich(e.open()) for _ in range(2)]
        turns = [say(session, prompt, 12, sampling, logprobs=True) for session in sessions]
        assert turns[1].stats.accepted > 5
        ids = prompt + list(turns[0].token_ids)
        with torch.no_grad():
            log_softmax = hf_model("llama")(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(log_softmax[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
        for turn in turns:
            assert turn.logprobs == pytest.approx(expected, abs=1e-5)
    assert say(e.open(), prompt).logprobs is None


def test_drafted_samples_follow_the_softmax():
    """Over many seeds, where a draft named the token before, so that the second token comes from a draft's logits."""
    prompt, temperature, seeds = list(range(20, 30)), 0.2, 600
    e = drafting(num_pages=200)
    keeper = e.open()
    say(keeper, prompt, 2)
    with torch.no_grad():
        first = (hf_model("llama")(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        likely = int(first.argmax())
        second = (hf_model("llama")(torch.tensor([[*prompt, likely]])).logits[0, -1] / temperature).softmax(-1)
    firsts, seconds = torch.zeros(VOCABULARY), torch.zeros(VOCABULARY)
    hits = 0
    for seed in range(seeds):
        with e.open() as session:
            turn = say(rich(session), prompt, 2, Sampling(temperature=temperature, seed=seed, ignore_eos=True))
        if turn.verdicts[0].draft:
            firsts[turn.token_ids[0]] += 1
            if turn.verdicts[0].accepted:
                hits += 1
                if turn.token_ids[0] == likely:
                    seconds[turn.token_ids[1]] += 1
    assert seeds * 0.9 < firsts.sum() and 60 < hits < firsts.sum() - 60
    for counts, probabilities in ((firsts, first), (seconds, second)):
        expected = counts.sum() * probabilities
        assert expected.sum() > 50
        bins = expected.argsort(descending=True)[:5]
        rest = expected.sum() - expected[bins].sum()
        observed = torch.cat([counts[bins], (counts.sum() - counts[bins].sum())[None]])
        wanted = torch.cat([expected[bins], rest[None]])
        assert ((observed - wanted) ** 2 / wanted).sum() < 20.5, "chi-square, 5 degrees of freedom, p = 0.001"


# ---- Ends


SENTENCE = "the cat saw the dog, "


@pytest.mark.parametrize(
    "sampling, count, said, reason",
    [
        (Sampling(), 40, None, "length"),
        (Sampling(), 7, "the cat", "length"),
        (Sampling(stop="t saw"), 40, "the cat saw", "stop"),
        (Sampling(stop=("zzz", "dog", "the d")), 40, "the cat saw the d", "stop"),
        (Sampling(stop=3 + ord(",") - 33), 40, None, "stop"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_behind_the_end_is_said_if_it_lies_in_an_accepted_run(
    sampling, count, said, reason, streamed, monkeypatch
):
    outcomes = []
    for e in (engine(), drafting(), drafting(max_draft=5)):
        ids = texts(e)
        prompt = ids(SENTENCE * 3)
        stops = [ids(",")[0] if isinstance(stop, int) else stop for stop in sampling.stop]
        options = {"max_new_tokens": count, "sampling": Sampling(stop=tuple(stops))}
        Scripted(monkeypatch, ids(SENTENCE * 9))
        session = e.open()
        if streamed:
            with session.stream(token_ids=prompt, **options) as stream:
                tokens = list(stream)
            turn = stream.turn
            assert [token.token_id for token in tokens] == list(turn.token_ids), "each token once"
            assert "".join(token.text for token in tokens).startswith(turn.text)
        else:
            turn = session.send(token_ids=prompt, **options)
        e.check()
        assert session.token_ids == prompt + list(turn.token_ids)
        assert session.sequence.kv_len == len(session.token_ids) - 1
        assert turn.finish_reason == reason
        assert said is None or e.tokenizer.decode(turn.token_ids) == said
        if e.scheduler.speculation:
            assert turn.stats.accepted >= len(turn.token_ids) // 2 and turn.stats.steps < turn.stats.generated / 2
            if reason == "stop" and e.scheduler.speculation.max_draft > 5:
                assert len(turn.verdicts[-1].draft) > len(turn.verdicts[-1].sampled), "the end cuts an accepted run"
        outcomes.append((turn.text, turn.token_ids, turn.stats.delta, turn.stats.prefilled))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("stop", [(), ("<|im_end|>",), (2,)])
def test_the_end_of_a_reply_inside_an_accepted_run_ends_it_unless_ignored(ignore_eos, stop, monkeypatch):
    turns = []
    for e in (engine(), drafting()):
        sentence = [*texts(e)("yes."), 2, *texts(e)("no.")]
        Scripted(monkeypatch, sentence * 9)
        session = e.open()
        turn = session.send(
            token_ids=sentence * 3, max_new_tokens=20, sampling=Sampling(ignore_eos=ignore_eos, stop=stop)
        )
        e.check()
        assert session.token_ids == sentence * 3 + list(turn.token_ids)
        turns.append((turn.token_ids, turn.text, turn.finish_reason))
    assert turns[0] == turns[1] and turn.stats.accepted >= 4
    assert (turn.finish_reason, turn.stats.generated) == (("length", 20) if ignore_eos and not stop else ("stop", 5))


@given(count=st.integers(1, 30), max_draft=st.sampled_from([0, 1, 4, 200]))
def test_a_draft_never_reaches_the_last_token_of_a_turn(count, max_draft):
    """It would not be forwarded without a draft: it needs no page, and no position."""
    e = drafting(positions=24 + count, num_pages=23 + count, page_size=1, max_draft=max_draft)
    session = rich(e.open())
    turn = session.send(token_ids=[7, 8] * 12, replay=[7, 8] * (count // 2) + [7] * (count % 2))
    e.check()
    left = count
    for verdict in turn.verdicts:
        assert len(verdict.draft) <= min(left - 1, max_draft)
        left -= len(verdict.sampled)
    assert turn.stats.forwarded == 24 + count - 1 + rejected(turn.stats)
    assert (turn.stats.drafted > 0) == (count > 1 and max_draft > 0)


@given(turns=st.lists(st.tuples(PROMPTS, PATTERNS), min_size=1, max_size=4))
def test_what_a_turn_adds_does_not_depend_on_speculation(turns):
    sessions = [e.open() for e in (engine(num_pages=300), drafting(num_pages=300))]
    for ids, replay in turns:
        plain, drafted = [session.send(token_ids=ids, replay=replay).stats for session in sessions]
        for name in ("context", "delta", "reused", "prefilled", "recomputed", "shared", "generated", "agreed"):
            assert getattr(drafted, name) == getattr(plain, name), name
        assert plain.steps == plain.generated and drafted.steps == plain.steps - drafted.accepted
        assert sessions[0].sequence.kv_len == sessions[1].sequence.kv_len
    for session in sessions:
        session.engine.check()


# ---- No trace


def rejected_drafts_left_in_log_or_pages_or_tree_or_grammar_or_index():
    """A reply that goes wrong wherever a match would go on: every draft is rejected, some after an accepted part."""
    e = drafting(page_size=2, max_draft=9)
    session = e.open()
    prompt = [7, 8, 9, 10, 11] * 3
    replay = [7, 8, 20, 7, 8, 9, 21, 7, 8, 9, 10, 22, 7, 8, 9, 10, 11, 7, 23, 7, 8]
    handle = e.submit(session, token_ids=prompt, replay=replay)
    seen = 0
    while not handle.done:
        e.step()
        e.check()
        generated = handle.generated
        assert session.token_ids == prompt + replay[: len(generated)]
        table, kv_len = session.sequence.table, len(prompt) + len(generated) - 1
        assert session.sequence.kv_len == kv_len and len(table.pages) == -(-kv_len // 2)
        assert e.cache.tree.num_pages == kv_len // 2, "full pages of what was said, and no others"
        assert e.pool.allocator.num_free == 64 - -(-kv_len // 2)
        require_index(session)
        seen += len(handle.verdicts[-1].draft) > handle.verdicts[-1].accepted
    assert seen > 5 and handle.turn.stats.accepted >= 5
    after = say(session, [40])
    assert after.token_ids == say(engine(NaiveEngine).open(), [*prompt, *replay, 40]).token_ids
    e.check()

    choosy, wrong = drafting(num_pages=300, sources=(LOG,)), 0
    schema = {"type": "array", "items": {"enum": ["aab", "aac"]}, "minItems": 6, "maxItems": 6}
    for seed in range(4):
        session = rich(choosy.open())
        handle = choosy.submit(
            session,
            token_ids=texts(choosy)('["aab", "aac", "aac", "aab", "aac", "aa'),
            max_new_tokens=60,
            response_format=schema,
            sampling=Sampling(temperature=1.0, seed=seed),
        )
        while not handle.done:
            choosy.step()
            fresh = choosy.grammars.constraint((), None, schema)
            for token in handle.generated:
                fresh.advance(token)
            assert (handle.constraint.forced, handle.constraint.ended) == (fresh.forced, fresh.ended)
            wrong += handle.verdicts[-1].accepted < len(handle.verdicts[-1].draft)
    assert wrong > 5, "the grammar has walked along drafts that were rejected"


def keep_pages(monkeypatch):
    truncate = PageTable.truncate

    def lazily(self, length):
        if length < self.length - 20 or length % 2:
            truncate(self, length)

    monkeypatch.setattr(PageTable, "truncate", lazily)


def keep_tokens(monkeypatch):
    process = OutputProcessor.process

    def whole(self, request, scores, draft):
        turn = process(self, request, scores, draft)
        sampled = len(request.verdicts[-1].sampled)
        request.sequence.log += [guess.token_id for guess in draft[sampled:]]
        return turn

    monkeypatch.setattr(OutputProcessor, "process", whole)


def keep_grammar(monkeypatch):
    monkeypatch.setattr("minstate.chat.grammar.Constraint.copy", lambda self: self)


def keep_ngrams(monkeypatch):
    propose = Speculator.propose

    def greedily(self, log, *others, **options):
        draft = propose(self, log, *others, **options)
        self.index.extend([*log, *(guess.token_id for guess in draft)])
        return draft

    monkeypatch.setattr(Speculator, "propose", greedily)


def test_no_rejected_draft_leaves_a_trace():
    rejected_drafts_left_in_log_or_pages_or_tree_or_grammar_or_index()


@pytest.mark.parametrize("undo", [keep_pages, keep_tokens, keep_grammar, keep_ngrams], ids=lambda undo: undo.__name__)
def test_a_trace_is_seen_if_it_is_left(undo, monkeypatch):
    undo(monkeypatch)
    with pytest.raises((AssertionError, BrokenInvariant, ValueError, IndexError, RuntimeError)):
        rejected_drafts_left_in_log_or_pages_or_tree_or_grammar_or_index()


class Interrupt(BaseException):
    """As `KeyboardInterrupt`: no `Exception`."""


FAILURES = {
    "in the model": "minstate.model.Model.forward",
    "in choosing": "minstate.output.choose",
    "in taking in a token": "minstate.output.OutputProcessor._append",
    "in the grammar": "minstate.chat.grammar.Constraint.advance",
    "in the ledger": "minstate.draft_budget.Allotment.charge",
    "in allotting": "minstate.scheduler.allot",
    "in guessing": "minstate.speculation.Speculator.propose",
    "in a look-up": "minstate.prompt_lookup.NgramIndex.find",
}


def fail_at(patch, path, count, error):
    """The call number `count` of it from now on raises `error`, once."""
    module, name = path.rsplit(".", 1)
    import importlib

    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        package, cls = module.rsplit(".", 1)
        owner = getattr(importlib.import_module(package), cls)
    whole, calls = getattr(owner, name), itertools.count(1)

    def failing(*args, **options):
        if next(calls) == count:
            raise error
        return whole(*args, **options)

    patch.setattr(owner, name, failing)


@pytest.mark.parametrize("where", FAILURES)
@pytest.mark.parametrize("count, error", [(1, Interrupt()), (2, RuntimeError())])
def test_a_turn_that_fails_leaves_its_session_as_it_was(where, count, error, monkeypatch):
    prompt, question = [20, 21, 22] * 3, [20, 21, 22, 23]
    plain = engine(num_pages=300).open()
    e = drafting(num_pages=300)
    session, options = e.open(), {"tools": [TOOL], "tool_choice": "required", "max_new_tokens": 75}
    for one in (session, plain):
        one.send(token_ids=prompt, replay=prompt)
    log = session.token_ids
    with monkeypatch.context() as patch:
        fail_at(patch, FAILURES[where], count, error)
        with pytest.raises(type(error)):
            session.send(token_ids=question, **options)
    e.check()
    assert not session.running and not e.scheduler.running and session.token_ids == log
    require_index(session)
    turn, expected = session.send(token_ids=question, **options), plain.send(token_ids=question, **options)
    e.check()
    assert turn.token_ids == expected.token_ids and turn.stats.accepted > 10
    assert turn.stats.delta == expected.stats.delta


@pytest.mark.parametrize("where", FAILURES)
def test_a_step_that_fails_aborts_the_turns_that_took_part(where, monkeypatch):
    e = drafting(num_pages=300)
    sessions = [e.open(), e.open()]
    options = {"tools": [TOOL], "tool_choice": "required", "max_new_tokens": 75}
    handles = [e.submit(session, token_ids=[20, 21, 22] * 3, **options) for session in sessions]
    e.step()
    with monkeypatch.context() as patch:
        fail_at(patch, FAILURES[where], 1, Interrupt())
        with pytest.raises(Interrupt):
            e.run()
    e.check()
    assert all(handle.aborted for handle in handles)
    assert [session.token_ids for session in sessions] == [[], []]


def test_an_aborted_turn_is_forgotten_by_the_index_too():
    e = drafting(sources=(LOG,))
    session = e.open()
    session.send(token_ids=[20, 21, 22, 23], replay=[24, 25])
    handle = e.submit(session, token_ids=[30, 31, 32, 33] * 3, max_new_tokens=30, sampling=GREEDY)
    for _ in range(3):
        e.step()
    handle.abort()
    require_index(session)
    turn = session.send(token_ids=[30, 31, 32], replay=[33, 30, 31])
    assert not turn.verdicts[0].draft, "what was taken back is nothing to go by"
    e.check()


def test_a_rollback_takes_back_what_could_be_guessed_from():
    e = drafting(sources=(LOG,))
    session = rich(e.open())
    session.send(token_ids=[20, 21, 22, 23, 24], replay=[60, 61])
    mark = session.mark()
    session.send(token_ids=[20, 21, 22, 33, 34], replay=[70, 71])
    child = rich(session.fork())
    session.rollback(mark)
    require_index(session)
    require_index(child)
    for one, likely in ((session, [23, 24, 60, 61]), (child, [33, 34, 70, 71])):
        turn = one.send(token_ids=[20, 21, 22], replay=[*likely, 9])
        assert [guess.token_id for guess in turn.verdicts[0].draft][:4] == likely
        assert turn.stats.accepted == 4
    e.check()


# ---- Who may guess


def replies(tenant, e):
    """What is guessed in a session of `tenant`, after another one, of A, said something of note."""
    note = [100, 101, 102, 103, 104, 105, 106]
    session = e.open(tenant="A")
    session.send(token_ids=[20, 21, 22], replay=note)
    return rich(e.open(tenant=tenant)).send(token_ids=[20, 21, 22], replay=note)


def test_replies_are_guessed_within_a_tenant_and_never_beyond():
    within, beyond = replies("A", drafting()), replies("B", drafting())
    assert [guess.token_id for guess in guesses(within, CORPUS)] == [100, 101, 102, 103, 104, 105]
    assert within.stats.accepted == 6
    assert beyond.stats.drafted == 0


def test_without_a_prefix_cache_sessions_guess_nothing_from_each_other():
    assert replies("A", drafting(prefix_cache=False)).stats.drafted == 0


def test_tools_are_guessed_within_a_tenant_and_never_beyond():
    """Of a tool that must be called with a value, the opening of a call is known before anybody called it."""
    for tenant, prefix_cache, known in [("A", True, True), ("B", True, False), ("A", False, False)]:
        e = roomy(prefix_cache=prefix_cache, sources=(CORPUS,))
        keeper = e.open("one", tools=[TOOL], tenant="A")
        call = texts(e)('<tool_call>\n{"name": "look", "arguments": {"path": "')
        turn = rich(e.open(tenant=tenant)).send(token_ids=texts(e)("say <to"), replay=call[3:])
        assert (turn.stats.accepted > 30) == known and keeper.sequence.speculator
        if not known:
            assert turn.stats.drafted == 0
        own = keeper.send("now", replay=call)
        assert own.stats.accepted > 30, "to whom the tools belong"


@pytest.mark.parametrize("source", [GRAMMAR, LOG, CORPUS])
def test_a_source_that_is_switched_off_guesses_nothing(source):
    drafted = {}
    for sources in ((GRAMMAR, LOG, CORPUS), tuple({GRAMMAR, LOG, CORPUS} - {source})):
        e = roomy(sources=sources)
        sessions = [e.open(tools=[TOOL]) for _ in range(2)]
        turns = [
            session.send(text, tool_choice="required", max_new_tokens=80)
            for text in ("look", "look again")
            for session in sessions
        ]
        turns.append(sessions[0].send(token_ids=[7, 8, 9] * 6, replay=[7, 8, 9] * 3, tool_choice=None))
        drafted[sources] = sum(len(guesses(turn, source)) for turn in turns)
    everything, without = drafted.values()
    assert everything > 0 and without == 0


def test_all_that_the_grammar_leaves_is_said_in_one_pass():
    e = roomy(max_draft=200)
    turn = rich(e.open()).send("look", tools=[TOOL], tool_choice="required", max_new_tokens=80)
    opening = texts(e)('<tool_call>\n{"name": "look", "arguments": {"path": "')
    assert [guess.token_id for guess in turn.verdicts[0].draft[: len(opening)]] == opening
    assert list(turn.verdicts[0].sampled[: len(opening)]) == opening
    forced = (
        engine(num_pages=800, positions=4000)
        .open()
        .send("look", tools=[TOOL], tool_choice="required", max_new_tokens=80)
    )
    assert turn.stats.forced == forced.stats.forced > len(opening), "with drafts or without"


def test_a_guess_goes_on_behind_itself_where_the_log_ends():
    speculator = Speculator(Speculation(FLAT), Corpus())
    assert [guess.token_id for guess in speculator.propose([7, 8, 9, 7, 8, 9], 8)] == [7, 8, 9, 7, 8, 9, 7, 8]
    speculator.corpus.add([1, 2, 3, 4, 5, 6])
    speculator.corpus.add([4, 5, 6, 7, 8])
    draft = Speculator(Speculation(FLAT), speculator.corpus).propose([9, 1, 2, 3], 9)
    assert [guess.token_id for guess in draft[:3]] == [4, 5, 6]


def test_a_guess_is_looked_up_behind_all_that_was_guessed_before():
    corpus = Corpus()
    for document in ([0, 1, 3, 4], [3, 4, 5, 6], [4, 5, 6, 70], [1, 5, 6, 80]):
        corpus.add(document)
    draft = Speculator(Speculation(FLAT, sources=(CORPUS,)), corpus).propose([9, 0, 1], 5)
    assert [guess.token_id for guess in draft] == [3, 4, 5, 6, 70]


def test_the_longer_match_guesses_and_one_s_own_log_before_others():
    corpus = Corpus()
    corpus.add([1, 2, 3, 4, 50])
    draft = Speculator(Speculation(FLAT), corpus).propose([2, 3, 4, 60, 1, 2, 3, 4], 1)
    assert (draft[0].token_id, draft[0].source, draft[0].match) == (50, CORPUS, 4)
    draft = Speculator(Speculation(FLAT), corpus).propose([1, 2, 3, 4, 60, 1, 2, 3, 4], 1)
    assert (draft[0].token_id, draft[0].source, draft[0].match) == (60, LOG, 4)


# ---- How much


def test_estimates_follow_what_became_of_the_guesses():
    acceptance = Acceptance()
    before = acceptance.chances(LOG)[band(12)]
    assert acceptance.chances(LOG)[band(3)] < before < acceptance.chances(LOG)[band(32)], "longer matches are surer"
    other = acceptance.copy()
    for _ in range(100):
        acceptance.observe(LOG, 12, False)
    assert acceptance.chances(LOG)[band(12)] < 0.02
    for untouched in (acceptance.chances(CORPUS)[band(12)], other.chances(LOG)[band(12)]):
        assert untouched == before, "sources apart, copies apart"
    assert acceptance.chances(LOG)[band(32)] == other.chances(LOG)[band(32)], "lengths apart"
    for _ in range(40):
        acceptance.observe(LOG, 12, True)
    assert acceptance.chances(LOG)[band(12)] > 0.75, "lately counts"


@pytest.mark.parametrize("hits", [1, 0])
def test_the_first_guess_that_is_wrong_is_the_last_to_learn_from(hits):
    speculator = Speculator(Speculation(FLAT), Corpus())
    seen = []
    speculator.acceptance.observe = lambda *observation: seen.append(observation)
    draft = [Guess(1, GRAMMAR, 0, 1.0), Guess(2, LOG, 5, 0.5), Guess(3, CORPUS, 6, 0.5), Guess(4, LOG, 7, 0.5)]
    speculator.learn(draft, [1, 2, 9, 4] if hits else [1, 9, 3, 4])
    assert seen == ([(LOG, 5, True), (CORPUS, 6, False)] if hits else [(LOG, 5, False)])
    seen.clear()
    speculator.learn(draft, [1, 2])
    assert seen == [(LOG, 5, True)], "of what was not said nothing is known"


def test_no_run_of_luck_makes_a_guess_certain():
    acceptance = Acceptance()
    for _ in range(3000):
        acceptance.observe(LOG, 32, True)
    assert 0.9 < acceptance.chances(LOG)[band(32)] <= Acceptance.SUREST < 1


def wrong_everywhere(count, letters=(3, 4, 5)):
    """A text in which the token behind each match is another than the one before: the index itself is asked for it."""
    speculator, text, draw = Speculator(Speculation(FLAT), Corpus()), [3, 3, 4, 3], random.Random(0)
    while len(text) < count:
        expected = speculator.propose(text, 1)
        text.append(draw.choice([x for x in letters if not expected or x != expected[0].token_id]))
    return text


def nothing_repeats(count):
    draw = random.Random(1)
    return [draw.randrange(3, VOCABULARY) for _ in range(count)]


def trust_then_betrayal(count):
    """Repeats until everything is believed, then says something else, over and over."""
    text = []
    for start in itertools.count():
        text += [10 + start % 40, 11, 12, 13] * 8 + wrong_everywhere(40)[start % 8 :]
        if len(text) >= count:
            break
    return text[:count]


def in_turns(e, text):
    """What an engine's passes are if a text is said in four turns."""
    session, passes = e.open(), recorded(e)
    for start in range(0, len(text), len(text) // 4):
        session.send(token_ids=text[start : start + 9], replay=text[start + 9 : start + len(text) // 4])
        e.check()
    return passes


@pytest.mark.parametrize("text", [wrong_everywhere, nothing_repeats, trust_then_betrayal])
def test_on_no_text_does_speculation_cost_more_than_it_may(text):
    """Priced by the passes that there were, whatever the ledgers say."""
    sizes = {"positions": 500, "num_pages": 32, "page_size": 16}
    plain = in_turns(engine(**sizes), text(400))
    for table in (MEASURED, DEAR, FLAT):
        speculated = in_turns(drafting(costs=table, **sizes), text(400))
        assert price(speculated, table) <= (1 + REGRET) * price(plain, table)
        assert len(speculated) < len(plain) or text is not trust_then_betrayal
        assert sum(tokens for tokens, _ in speculated) > sum(tokens for tokens, _ in plain) or text is nothing_repeats


def test_the_end_of_a_reply_that_was_guessed_saves_no_pass(monkeypatch):
    costs = []
    Scripted(monkeypatch, [77] * 999)
    for e in (engine(num_pages=99, page_size=16), drafting(costs=MEASURED, num_pages=99, page_size=16)):
        session, passes = e.open(), recorded(e)
        for _ in range(50):
            session.send(token_ids=[70, 71, 72], max_new_tokens=30, sampling=Sampling(stop=(77,)))
            e.check()
        costs.append(price(passes, MEASURED))
    assert costs[1] <= (1 + REGRET) * costs[0]


def test_a_stop_string_inside_what_the_grammar_forces_overdraws_no_ledger():
    e = roomy(costs=DEAR)
    turn = e.open("hi", tools=[TOOL]).send(
        "look", tool_choice="required", max_new_tokens=50, sampling=Sampling(stop="<")
    )
    assert turn.stats.generated == 1
    e.check()


def test_drafting_ends_where_it_fails_and_begins_again_where_text_repeats():
    wrong, repeating = wrong_everywhere(600), nothing_repeats(30) * 5
    e = drafting(costs=MEASURED, positions=900, num_pages=64, page_size=16, sources=(LOG,))
    session, drafted = e.open(), []
    for start in range(0, 600, 150):
        turn = session.send(token_ids=[9], replay=wrong[start : start + 150])
        drafted.append(turn.stats.drafted)
        assert turn.stats.accepted == 0
    assert drafted[0] > 10 and drafted[1] < drafted[0] / 2 and max(drafted[2:]) <= 3
    again = session.send(token_ids=[9], replay=repeating).stats
    assert again.drafted > 60 and again.accepted > 0.8 * again.drafted and again.steps < 100


def test_on_a_fixed_budget_many_sequences_spend_less_on_drafts():
    table = CostTable((1, 2, 64), (0, 10000), ((100.0, 110.0, 730.0), (100.0, 110.0, 730.0)))
    spent = []
    for sequences in (1, 6):
        e = drafting(costs=table, num_pages=400, sources=(LOG,))
        draw = random.Random(3)
        said = [[x, x + 1, x + 2, draw.randrange(90, 200)] for x in range(20, 32, 2) for _ in range(10)]
        text = [token for four in said for token in four]
        handles = [e.submit(e.open(), token_ids=text[:12], replay=text[12:120]) for _ in range(sequences)]
        e.run()
        spent.append(sum(handle.turn.stats.drafted for handle in handles) / sequences)
    assert spent[0] > spent[1] > 0


def test_a_limit_of_sequences_can_be_set_by_hand():
    e = drafting(max_sequences=1)
    long, short = (e.submit(e.open(), token_ids=[7, 8] * 4, replay=[7, 8] * n) for n in (20, 4))
    while not short.done:
        e.step()
    assert short.turn.stats.drafted == 0 and sum(len(v.draft) for v in long.verdicts) == 0
    e.run()
    assert long.turn.stats.accepted > 20, "alone at last"
    none = drafting(max_sequences=0)
    assert none.open().send(token_ids=[7, 8] * 4, replay=[7, 8] * 9).stats.drafted == 0


def test_where_tokens_cost_as_much_as_passes_none_is_drafted():
    e = drafting(costs=STEEP)
    session = e.open()
    for _ in range(3):
        assert session.send(token_ids=[7, 8] * 4, replay=[7, 8] * 9).stats.drafted == 0


def test_a_guess_that_was_not_forwarded_is_learnt_from():
    e = drafting(max_sequences=0)
    session = e.open()
    before = session.sequence.speculator.acceptance.chances(LOG)[band(32)]
    session.send(token_ids=[7, 8] * 20, replay=[7, 8] * 20)
    assert session.sequence.speculator.acceptance.chances(LOG)[band(32)] > before


@pytest.mark.parametrize("budget", [1, 2, 3, 8])
def test_drafts_keep_to_the_budget_and_let_a_prompt_go_on(budget, monkeypatch):
    e = drafting(token_budget=budget, num_pages=200)
    passes = recorded(e)
    readers = [e.submit(e.open(), token_ids=[7, 8] * 3, replay=[7, 8] * 20)]
    while not readers[0].tokens:
        e.step()
    filling = e.submit(e.open(), token_ids=list(range(20, 70)), replay=[5] * 3)
    before = filling.remaining
    while not readers[0].done:
        had, left = len(readers[0].tokens), filling.remaining
        e.step()
        e.check()
        assert len(readers[0].tokens) > had, "a decode goes on in every step"
        if budget > 1 and not readers[0].done:
            assert filling.remaining < left, "and a prompt too"
    assert before > 0 and max(tokens for tokens, _ in passes) == budget
    e.run()
    assert filling.turn and (budget < 3 or readers[0].turn.stats.accepted > 0)


def test_the_same_requests_give_the_same_batches():
    batches = []
    for _ in range(2):
        e = drafting(costs=MEASURED, token_budget=16, num_pages=200)
        batches.append(recorded(e))
        for ids in ([7, 8, 9] * 4, [7, 8] * 5, list(range(20, 50))):
            e.submit(e.open(), token_ids=ids, replay=[7, 8, 9] * 8)
        e.run()
    assert batches[0] == batches[1]


def test_a_fork_learns_for_itself_and_has_no_allowance():
    e = drafting(costs=MEASURED)
    session = e.open()
    session.send(token_ids=[7, 8, 9] * 5, replay=[7, 8, 9] * 15)
    child = session.fork()
    mine, its = session.sequence.speculator, child.sequence.speculator
    assert (its.ledger.base_ms, its.ledger.regret_ms) == (0, 0) and mine.ledger.base_ms > 0
    assert its.acceptance.chances(LOG)[band(32)] == mine.acceptance.chances(LOG)[band(32)]
    before = mine.acceptance.chances(LOG)[band(32)]
    child.send(token_ids=[7, 8, 9] * 2, replay=[7, 8, 10] * 5)
    assert mine.acceptance.chances(LOG)[band(32)] == before
    require_index(session)
    require_index(child)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_draft": -1}, {"max_draft": 1.5}, {"max_draft": True}, {"max_sequences": -1}, {"max_sequences": "2"},
        {"sources": "log"}, {"sources": ("log", "dice")}, {"sources": ["log"]},
    ],
)  # fmt: skip
def test_absurd_settings_are_refused(settings):
    with pytest.raises(BadValue):
        Speculation(FLAT, **settings)


def test_speculation_is_off_unless_wanted():
    assert engine().open().sequence.speculator is None
    assert engine(speculation=True).scheduler.speculation == Speculation(CostTable.default("float32"))
    with pytest.raises(BadValue):
        engine(speculation="yes")


def test_a_verdict_counts_what_it_says():
    draft = tuple(Guess(token, LOG, 3, 0.5) for token in (5, 6, 7))
    assert [Verdict(draft, said).accepted for said in ((5, 6, 7, 8), (5, 9), (9,), (5, 6))] == [3, 1, 0, 2]
