"""Measuring engines side by side: the table has the counters of each turn, on tiny engines and plain messages."""

import pandas as pd
import pytest
from tiny import engine

from minstate import Engine, Sampling
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.figures.turn_costs import long_conversation, prompt_strips, turn_costs
from minstate.lab.measure import formatted, per_turn, run_side_by_side


class Chatter:
    """A workload of plain messages, without tools."""

    opening = ({"role": "system", "content": "Hi"},)
    tools = ()
    turns = 3

    def __iter__(self):
        for number in range(self.turns):
            yield [{"role": "user", "content": f"say {number}"}]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    engines = {"naive": engine(NaiveEngine), "stateful": engine()}
    sampling = Sampling(temperature=1.0, ignore_eos=True)
    rows = run_side_by_side(engines, Chatter(), max_new_tokens=4, sampling=sampling, repeats=2)
    for e in engines.values():
        assert e.cache.num_available == e.pool.allocator.num_pages, "measuring leaves nothing behind"
    return rows


def test_each_repeat_turn_and_engine_has_a_row(rows):
    assert len(rows) == 2 * 3 * 2 and not rows.isna().any().any()
    assert (rows.groupby(["repeat", "turn"])["token_ids"].nunique() == 1).all()
    assert (rows["n"] == rows["context"] + rows["delta"]).all()


def test_the_table_shows_the_counters(rows):
    table = per_turn(rows, "naive", "stateful")
    stateful = rows[(rows["engine"] == "stateful") & (rows["repeat"] == 0)].set_index("turn")
    assert (table["forwarded, stateful"] == stateful["delta"] + 3).all()
    assert (table["forwarded, naive"] == stateful["n"] + 3).all()
    assert table["reused share"].iloc[0] == 0 and (table["reused share"].iloc[1:] > 0.5).all()
    assert formatted(table).loc[1, "reused share"] == "0%"


def test_figures_draw_the_counters(rows):
    work, clock = turn_costs(rows).axes
    drawn = [patch.get_height() for patch in work.patches]
    table = per_turn(rows, "naive", "stateful")
    assert drawn[:6] == [*table["forwarded, naive"], *table["forwarded, stateful"]]
    assert clock.get_ylabel() == "seconds" and work.get_ylabel() == "tokens"
    stateful = rows[(rows["engine"] == "stateful") & (rows["repeat"] == 0)].set_index("turn")
    for count in range(4):
        strips = prompt_strips(stateful, count).axes[0]
        assert len(strips.patches) == 3 * count


def test_a_long_conversation_shows_what_is_old_in_each_prompt_and_all_the_work():
    def turns(kind) -> list:
        with engine(kind).open() as session:
            return [session.send(f"say {number}", max_new_tokens=4).stats for number in range(3)]

    naive, stateful = turns(NaiveEngine), turns(Engine)
    prompts, totals = long_conversation(naive, stateful).axes
    heights = [patch.get_height() for patch in prompts.patches]
    assert heights == [stats.context for stats in stateful] + [stats.delta for stats in stateful]
    lines = {line.get_label(): line.get_ydata()[-1] for line in totals.lines}
    assert lines == {"naive": sum(s.forwarded for s in naive), "stateful": sum(s.forwarded for s in stateful)}
