"""Figures of a scheduler at work: which turns wait and run, what each step's batch holds, what pages are used for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.figures.agents import pass_ms
from minstate.lab.figures.palette import (
    BLUE,
    DIM,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    STYLE,
    new_figure,
    paper_box,
)
from minstate.lab.serving.clocks import ModelledClock
from minstate.request import Request

WORK = {
    "decode": {"facecolor": SKY},
    "drafts": {"facecolor": ORANGE, "hatch": "..."},
    "prefill": {"facecolor": BLUE, "hatch": "//"},
}
LOOKS = WORK | {
    "wait": {"facecolor": PAPER, "hatch": "...."},
    "held": {"facecolor": GREY},
    "defer": {"facecolor": PURPLE, "hatch": "xx"},
    "preempt": {"facecolor": INK},
}
NAMES = {
    "decode": "decode: 1 token",
    "drafts": "drafts: how many",
    "prefill": "prefill",
    "wait": "waits",
    "held": "runs, but no budget is left",
    "defer": "deferred: another turn computes it",
    "preempt": "preempted",
}
PAGES = {
    "of running turns": {"facecolor": DIM, "hatch": "\\\\"},
    "idle, may be evicted": {"facecolor": GREEN},
    "free": {"facecolor": PAPER},
}


class Part(NamedTuple):
    """What a step does with one session's turn."""

    state: str  # "wait", "held", "defer", "preempt", "prefill" or "decode"
    request: int  # the turn's number
    tokens: int = 0  # of its log that the step forwards
    drafted: int = 0  # guesses that the step forwards, too


@dataclass(frozen=True)
class Moment:
    """A step that is done: a copy, which later steps do not change."""

    step: int  # from 0 up
    at_s: float  # when it was done, on the recorder's clock
    parts: dict[int, Part]  # by the session's number: the sessions with a turn under way
    pages: tuple[int, int, int]  # as in `PAGES`

    @staticmethod
    def of(engine: Engine, turns: Sequence[Request]) -> "Moment":
        """The last step of `engine`, and what it did with each of `turns`."""
        scheduler, allocator = engine.scheduler, engine.pool.allocator
        step = scheduler.steps - 1
        events = {event.request: event for event in scheduler.timeline if event.step == step and event.what in LOOKS}
        parts = {}
        for turn in turns:
            number, event = turn.number, events.get(turn.number)
            if event and event.what != "wait":
                parts[turn.session.number] = Part(event.what, number, event.tokens, event.drafted)
            elif not turn.done:
                parts[turn.session.number] = Part("wait" if turn in scheduler.waiting else "held", number)
        available = engine.cache.num_available
        pages = (allocator.num_pages - available, available - allocator.num_free, allocator.num_free)
        return Moment(step, 0.0, parts, pages)

    def total(self, kind: str) -> int:
        """Query tokens of one kind, a key of `WORK`, in the step's batch."""
        parts = self.parts.values()
        if kind == "drafts":
            return sum(part.drafted for part in parts)
        return sum(part.tokens for part in parts if part.state == kind)

    @property
    def query_tokens(self) -> int:
        """Of all parts."""
        return sum(self.total(kind) for kind in WORK)


class Recorder(ModelledClock):
    """A modelled clock that keeps a `Moment` of every step of its engine, and prices a step by `pass_ms`."""

    def __init__(self, costs: CostTable):
        super().__init__(costs)
        self.moments: list[Moment] = []

    def after_step(self, engine: Engine, running: Sequence[Request]) -> None:
        """Keep the step that `engine` has just done, in which only `running` turns can have taken part."""
        if engine.scheduler.steps > (self.moments[-1].step + 1 if self.moments else 0):
            moment = Moment.of(engine, running)
            contexts = {turn.session.number: turn.sequence.kv_len for turn in running}
            work = [(part.tokens + part.drafted, contexts[session]) for session, part in moment.parts.items()]
            self.seconds += pass_ms(self.costs, [each for each in work if each[0]]) / 1000
            self.moments.append(replace(moment, at_s=self.seconds))


def session_lanes(
    moments: Sequence[Moment], names: Mapping[int, str], budget: int, title: str = "", of: int = 0
) -> Figure:
    """The batches above, a lane for each session below; a white line between two turns of a session.

    names   by the session's number, from top to bottom
    of      leave room for so many steps, where `moments` are only the first of them

    Where anything is drafted, a lane has two rows: the tokens of the log above, drafts below. Up to 40 steps show the
    numbers of both; in a longer run, the height of a bar says how many drafts there are.
    """
    drafting = any(part.drafted for moment in moments for part in moment.parts.values())
    lane = 0.52 if drafting else 0.36
    figure, _ = new_figure(width=9.6, height=2.5 + lane * len(names))
    figure.clear()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, lane * len(names)])
    first, count = moments[0].step + 1, max(len(moments), of)
    steps, below = [moment.step + 1 for moment in moments], [0] * len(moments)
    with mpl.rc_context(STYLE):
        for kind, look in WORK.items():
            heights = [moment.total(kind) for moment in moments]
            few = {"edgecolor": PAPER, "linewidth": 0.4} if count <= 120 else {"hatch": None, "linewidth": 0}
            upper.bar(steps, heights, 0.96 if count <= 120 else 1, bottom=below, label=kind, **(look | few))
            below = [low + height for low, height in zip(below, heights, strict=True)]
        upper.axhline(budget, color=INK, linestyle="--", linewidth=1)
        upper.text(first + count - 0.5, budget * 1.02, f"token_budget = {budget}", ha="right", va="bottom", fontsize=8)
        upper.set(ylabel="query tokens", ylim=(0, budget * 1.2))
        upper.set_title(title or "One step after the other", fontsize=11)
        shown = set()
        for row, session in enumerate(names):
            shown |= _lane(lower, row, moments, session, text=count <= 40, split=0.54 if drafting else 1.0)
        lower.set(xlabel="step (one forward pass each)", xlim=(first - 0.6, first + count - 0.4), ylim=(len(names), 0))
        lower.set_yticks([row + 0.5 for row in range(len(names))], names.values())
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        lower.grid(visible=False)
        for axes in (upper, lower):
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        swatches = [
            Patch(edgecolor=INK, linewidth=0.4, label=NAMES[kind], **LOOKS[kind]) for kind in LOOKS if kind in shown
        ]
        figure.legend(handles=swatches, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    return figure


def _lane(axes: Axes, row: int, moments: Sequence[Moment], session: int, *, text: bool, split: float) -> set[str]:
    """Draw one session's lane: down to `split` what becomes of its log, below that its drafts.

    Returns the kinds that the legend needs.
    """
    mine = [(moment.step + 1, moment.parts[session]) for moment in moments if session in moment.parts]
    top, height, most = row + 0.08, split - 0.16 if split == 1 else split - 0.1, 0.92 - split
    runs = groupby(enumerate(mine), key=lambda each: (each[1][0] - each[0], each[1][1].state, each[1][1].request))
    for (_, state, _), run in runs:
        steps = [step for _, (step, _) in run]
        gap = 0.08 if len(moments) <= 120 else 0
        width = steps[-1] - steps[0] + 1 - 2 * gap
        look = {"linewidth": 0.5, "edgecolor": DIM if state == "wait" else PAPER} | LOOKS[state]
        axes.add_patch(Rectangle((steps[0] - 0.5 + gap, top), width, height, **look))
    longest = max((part.drafted for moment in moments for part in moment.parts.values()), default=0)
    for step, part in mine:
        middle = {"ha": "center", "va": "center", "fontsize": 8, "color": INK, "bbox": paper_box()}
        if text and part.tokens:
            axes.text(step, top + height / 2, str(part.tokens), **middle)
        if part.drafted and text:
            box = {"edgecolor": INK, "linewidth": 0.4} | WORK["drafts"]
            axes.add_patch(Rectangle((step - 0.46, row + split), 0.92, most, **box))
            axes.text(step, row + split + most / 2, f"+{part.drafted}", **middle)
        elif part.drafted:
            bar = most * (0.2 + 0.8 * part.drafted / longest)
            axes.add_patch(Rectangle((step - 0.5, row + 0.92 - bar), 1, bar, facecolor=ORANGE, linewidth=0))
    return {part.state for _, part in mine} | {"drafts" for _, part in mine if part.drafted}


def step_figure(moments: Sequence[Moment], at: int, names: Mapping[int, str], budget: int) -> Figure:
    """One step: the state of each session; the batch, against the budget; what the pages are used for."""
    moment = moments[at]
    figure, _ = new_figure(width=9.6, height=1.5 + 0.34 * len(names))
    figure.clear()
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 2.1])
    left, batch, pages = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    with mpl.rc_context(STYLE):
        for row, (session, name) in enumerate(names.items()):
            part = moment.parts.get(session)
            left.text(0, row + 0.5, name, va="center", fontsize=9, fontweight="bold", color=INK if part else FAINT)
            if part:
                left.add_patch(
                    Rectangle((2.6, row + 0.15), 0.8, 0.7, edgecolor=INK, linewidth=0.4, **LOOKS[part.state])
                )
                left.text(3.7, row + 0.5, _describe(part), va="center", fontsize=8)
        left.set(xlim=(0, 10), ylim=(len(names), 0), yticks=[])
        left.tick_params(bottom=False, labelbottom=False)
        left.set_title(f"Step {moment.step + 1} of {moments[-1].step + 1}")
        pieces = [(kind, names[session], count) for kind in WORK for session, count in _counts(moment, kind, names)]
        _stack(batch, [(WORK[kind], name, count) for kind, name, count in pieces])
        batch.add_patch(Rectangle((0, 0), budget, 1, fill=False, edgecolor=INK, linestyle="--"))
        batch.set(xlim=(-0.01 * budget, budget * 1.01), xlabel="query tokens")
        batch.set_title(f"The batch: {moment.query_tokens} of {budget} tokens")
        _stack(pages, [(look, name, count) for (name, look), count in zip(PAGES.items(), moment.pages, strict=True)])
        total = sum(moment.pages)
        pages.set(xlim=(-0.01 * total, total * 1.01), xlabel="pages")
        pages.set_title(f"The pool: running turns need {moment.pages[0]} of {total} pages")
        for axes in (left, batch, pages):
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.tick_params(length=2, labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        swatches = [Patch(edgecolor=INK, linewidth=0.4, label=kind, **look) for kind, look in WORK.items()]
        figure.legend(handles=swatches, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    return figure


def _describe(part: Part) -> str:
    if part.state in WORK:
        return f"{part.state} {part.tokens}" + (f", drafts {part.drafted}" if part.drafted else "")
    return NAMES[part.state].split(":")[0]


def _counts(moment: Moment, kind: str, names: Mapping[int, str]) -> list[tuple[int, int]]:
    """The sessions that have tokens of a kind in the step, each with their number."""
    parts = [(session, moment.parts[session]) for session in names if session in moment.parts]
    if kind == "drafts":
        return [(session, part.drafted) for session, part in parts if part.drafted]
    return [(session, part.tokens) for session, part in parts if part.state == kind]


def _stack(axes: Axes, pieces: Sequence[tuple[dict, str, int]]) -> None:
    """Draw the pieces of a bar from left to right, each with its name if there is room for it."""
    start, whole = 0, sum(count for *_, count in pieces) or 1
    for look, name, count in pieces:
        axes.add_patch(Rectangle((start, 0), count, 1, edgecolor=INK, linewidth=0.5, **look))
        label = f"{name}: {count}" if count > 0.25 * whole else name if count > 0.1 * whole else ""
        if label:
            axes.text(start + count / 2, 0.5, label, ha="center", va="center", fontsize=8, bbox=paper_box())
        start += count
    axes.set(ylim=(0, 1), yticks=[])
