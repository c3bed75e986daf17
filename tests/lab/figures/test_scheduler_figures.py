"""Figures of a scheduler at work: they show what its timeline records, step by step, and nothing else."""

from unittest.mock import patch

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate import CostTable, Sampling, Speculation, scheduler
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.figures.agents import pass_ms
from minstate.lab.figures.scheduler import LOOKS, NAMES, PAGES, Moment, Part, Recorder, session_lanes, step_figure
from minstate.lab.notebook.widgets import stepper

FREE = Sampling(ignore_eos=True)
COSTS = CostTable((1, 100), (0, 1000), ((10.0, 109.0), (20.0, 1109.0)))
DRAFTS = Speculation(CostTable((1, 64), (0, 10000), ((1.0, 1.01), (1.0, 1.01))), max_draft=4)
SESSIONS = {0: "Ada", 1: "Ben", 2: "Cleo"}


@pytest.fixture(scope="module")
def crowded():
    """Three turns on too few pages, with drafts: the engine, its turns, and a recorder of all steps."""
    with patch.object(scheduler, "GROWTH", 0):
        engine = small_engine(num_pages=12, token_budget=12, speculation=DRAFTS)
        recorder, team = Recorder(COSTS), [60 + i for i in range(12)]
        prompts = [[40] * 10, [*team, 7], [*team, 8]]
        turns = [engine.submit(engine.open(), token_ids=ids, max_new_tokens=16, sampling=FREE) for ids in prompts]
        while not all(turn.done for turn in turns):
            engine.step()
            recorder.after_step(engine, turns)
    return engine, turns, recorder


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_step_is_kept_once_with_the_tokens_that_the_timeline_gives_it(crowded):
    engine, turns, recorder = crowded
    assert [moment.step for moment in recorder.moments] == list(range(engine.scheduler.steps))
    for moment in recorder.moments:
        events = [event for event in engine.scheduler.timeline if event.step == moment.step and event.tokens]
        parts = {part.request: part for part in moment.parts.values() if part.tokens}
        assert {(e.request, e.what, e.tokens, e.drafted) for e in events} == {
            (number, part.state, part.tokens, part.drafted) for number, part in parts.items()
        }
        assert moment.query_tokens == sum(event.tokens + event.drafted for event in events) <= 12
    assert sum(moment.query_tokens for moment in recorder.moments) == sum(t.turn.stats.forwarded for t in turns)


def test_a_turn_without_tokens_waits_is_deferred_is_preempted_or_has_no_budget_left(crowded):
    engine, turns, recorder = crowded
    seen = {part.state for moment in recorder.moments for part in moment.parts.values()}
    assert {"wait", "preempt", "held", "prefill", "decode"} <= seen <= set(LOOKS)
    for moment in recorder.moments:
        noted = {e.request for e in engine.scheduler.timeline if e.step == moment.step and e.what == "preempt"}
        assert noted == {part.request for part in moment.parts.values() if part.state == "preempt"}
    for turn in turns:
        number = turn.session.number
        steps = [moment.step for moment in recorder.moments if number in moment.parts]
        assert steps == list(range(steps[0], steps[-1] + 1)), "from the submission to the end"


def test_pages_are_those_of_running_turns_idle_ones_and_free_ones(crowded):
    engine, _, recorder = crowded
    assert all(sum(moment.pages) == 12 and min(moment.pages) >= 0 for moment in recorder.moments)
    running, idle, free = recorder.moments[-1].pages
    assert (running, free) == (0, engine.pool.allocator.num_free) and idle == 12 - free


def test_a_moment_is_a_copy_and_only_a_forward_pass_makes_one(crowded):
    engine, turns, recorder = crowded
    before = list(recorder.moments)
    recorder.after_step(engine, turns)
    assert recorder.moments == before, "no step was taken since"


def test_a_step_is_priced_by_its_parts():
    engine, recorder = small_engine(token_budget=100), Recorder(COSTS)
    turn = engine.submit(engine.open(), token_ids=[40] * 10, max_new_tokens=2, sampling=FREE)
    engine.step()
    recorder.after_step(engine, [turn])
    engine.step()
    recorder.after_step(engine, [turn])
    first, second = (moment.at_s * 1000 for moment in recorder.moments)
    assert first == pytest.approx(pass_ms(COSTS, [(10, 10)]))
    assert second - first == pytest.approx(pass_ms(COSTS, [(1, 11)])) and recorder.now() == recorder.moments[-1].at_s


def test_lanes_show_the_batches_as_bars_and_each_sessions_tokens(crowded):
    _, _, recorder = crowded
    moments = recorder.moments[:20]
    figure = session_lanes(moments, SESSIONS, 12, "Three turns")
    upper, lower = figure.axes
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in upper.containers}
    assert bars == {kind: [moment.total(kind) for moment in moments] for kind in ("decode", "drafts", "prefill")}
    assert upper.get_title(loc="left") == "Three turns" and "token_budget = 12" in texts(figure)
    assert [label.get_text() for label in lower.get_yticklabels()] == ["Ada", "Ben", "Cleo"]
    parts = [part for moment in moments for part in moment.parts.values()]
    wanted = [str(part.tokens) for part in parts if part.tokens] + [f"+{p.drafted}" for p in parts if p.drafted]
    assert sorted(text.get_text() for text in lower.texts) == sorted(wanted)
    kinds = {part.state for part in parts} | {"drafts" for part in parts if part.drafted}
    assert legend(figure) == [NAMES[kind] for kind in LOOKS if kind in kinds]


def test_a_long_timeline_has_no_numbers_and_room_for_later_steps(crowded):
    _, _, recorder = crowded
    figure = session_lanes(recorder.moments[:3], SESSIONS, 12, of=200)
    upper, lower = figure.axes
    assert not lower.texts and lower.get_xlim()[1] > 200 and "query tokens" in upper.get_ylabel()


@pytest.mark.parametrize("steps, labels", [(40, ["1", "+11"]), (41, [])])
def test_drafts_stand_below_the_tokens_of_the_log_with_their_number_or_as_bars(steps, labels):
    moments = [Moment(step, 0.1, {0: Part("decode", 0, 1, 11)}, (1, 0, 0)) for step in range(steps)]
    _, lower = session_lanes(moments, {0: "Ada"}, 12).axes
    assert [text.get_text() for text in lower.texts] == labels * steps
    lane, *drafts = lower.patches
    assert len(drafts) == steps and all(each.get_y() >= lane.get_y() + lane.get_height() for each in drafts)


def test_a_step_shows_its_batch_against_the_budget_and_the_pool():
    parts = {0: Part("decode", 0, 1, 3), 1: Part("prefill", 1, 7), 2: Part("wait", 2)}
    figure = step_figure([Moment(0, 0.1, parts, (5, 3, 8))], 0, SESSIONS, 20)
    left, batch, pages = figure.axes
    assert {"Ada", "Ben", "Cleo", "decode 1, drafts 3", "prefill 7", "waits", "Ben: 7"} <= set(texts(figure))
    widths = [patch.get_width() for patch in batch.patches if isinstance(patch, Rectangle)]
    assert widths == [1, 3, 7, 20], "decode, drafts, prefill, and the budget around them"
    assert [patch.get_width() for patch in pages.patches] == [5, 3, 8]
    assert batch.get_title(loc="left") == "The batch: 11 of 20 tokens" and batch.get_xlabel() == "query tokens"
    assert pages.get_title(loc="left") == "The pool: running turns need 5 of 16 pages" and pages.get_xlabel() == "pages"
    assert left.get_title(loc="left") == "Step 1 of 1"


def test_before_the_first_step_all_pages_are_free():
    before = Moment(-1, 0.0, {}, (0, 0, 16))
    left, batch, pages = step_figure(
        [before, Moment(0, 0.1, {0: Part("decode", 0, 1)}, (1, 0, 15))], 0, SESSIONS, 20
    ).axes
    assert left.get_title(loc="left") == "Step 0 of 1" and batch.get_title(loc="left") == "The batch: 0 of 20 tokens"
    assert [patch.get_width() for patch in pages.patches] == [0, 0, 16]


def test_a_slider_over_the_steps_draws_on_the_same_axes(crowded):
    _, _, recorder = crowded
    figures = [step_figure(recorder.moments, at, SESSIONS, 12) for at in range(len(recorder.moments))]
    assert len({tuple(axes.get_xlim() for axes in figure.axes) for figure in figures}) == 1
    box = stepper(lambda at: figures[at], len(figures))
    (_, slider), picture = box.children[0].children, box.children[1]
    before = picture.value
    slider.value = 3
    assert picture.value != before


def test_a_grey_printer_tells_the_kinds_apart():
    kinds = [*LOOKS.values(), PAGES["of running turns"]]
    looks = {(look.get("hatch"), round(sum(to_rgba(look["facecolor"])[:3]), 1)) for look in kinds}
    assert len(looks) == len(kinds)


def test_a_turn_that_waits_for_pages_that_another_computes_is_shown_as_deferred():
    engine, recorder = small_engine(token_budget=100), Recorder(COSTS)
    team = list(range(40, 60))
    turns = [engine.submit(engine.open(), token_ids=[*team, end], max_new_tokens=2, sampling=FREE) for end in (7, 8)]
    engine.step()
    recorder.after_step(engine, turns)
    (moment,) = recorder.moments
    assert [part.state for part in moment.parts.values()] == ["prefill", "defer"]
    assert {"prefill 21", "deferred"} <= set(texts(step_figure([moment], 0, {0: "first", 1: "second"}, 100)))
