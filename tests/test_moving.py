"""Moving K/V: bytes that one engine exports are adopted by another, in any process, and the same tokens follow."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import IDS, SAMPLINGS, engine, hf_model, tokenizer

from minstate import BadValue, Engine, Sampling, SessionBusy, SessionClosed, UnreadableSession
from minstate.lab.engines.baselines import NaiveEngine
from minstate.model import Model
from minstate.model_config import ModelConfig

FREE = Sampling(ignore_eos=True)


def send(session, ids, count=5, sampling=FREE):
    return session.send(token_ids=ids, max_new_tokens=count, sampling=sampling)


@given(first=IDS, second=IDS, sampling=SAMPLINGS, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_an_adopted_session_goes_on_as_the_exported_one_and_computes_nothing_again(first, second, sampling, sizes):
    ours, theirs = (engine(num_pages=256, page_size=size) for size in sizes)
    session = ours.open()
    send(session, first, sampling=sampling)
    adopted = theirs.adopt(ours.export(session))
    theirs.check()
    assert (adopted.token_ids, adopted.resident) == (session.token_ids, session.resident)
    turn = send(adopted, second, sampling=sampling)
    assert turn.stats.prefilled == turn.stats.delta
    assert turn.token_ids == send(session, second, sampling=sampling).token_ids
    ours.check()
    theirs.check()


def test_export_and_save_adopt_and_load_are_one_format(tmp_path):
    e = engine()
    session = e.open()
    send(session, list(range(20, 50)))
    session.save(tmp_path / "file")
    (tmp_path / "exported").write_bytes(e.export(session))
    for other in (engine().load(tmp_path / "exported"), engine().adopt((tmp_path / "file").read_bytes())):
        assert (other.token_ids, other.resident) == (session.token_ids, session.resident)


def test_an_exported_session_stays_and_its_hint_too():
    e = engine()
    session = e.open()
    send(session, list(range(20, 50)))
    session.expect(1000.0)
    e.export(session)
    assert session.sequence in e.cache.expected_returns and send(session, [7]).stats.recomputed == 0
    e.check()


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_what_lies_in_a_tier_is_exported_too(tier, tmp_path):
    e = engine(**({"host_tokens": 200} if tier == "host" else {"disk": tmp_path / "d", "disk_bytes": 10**6}))
    session = e.open()
    send(session, list(range(20, 61)))
    e.cache.make_room(e.pool.allocator.num_pages)
    assert session.resident == 0
    adopted = engine().adopt(e.export(session))
    assert adopted.resident == 44 == session.resident
    e.check()


def test_a_prefix_is_exported_with_what_the_tenant_has_of_it_and_others_share_it():
    e, prefix = engine(), list(range(20, 61))
    send(e.open(tenant="one"), prefix)
    data, foreign = e.export(prefix, tenant="one"), e.export(prefix, tenant="two")
    theirs = engine()
    theirs.adopt(foreign, tenant="two").close()
    assert send(theirs.open(tenant="two"), prefix).stats.reused == 0, "tenant two had nothing of it"
    theirs.adopt(data, tenant="one").close()
    turn = send(theirs.open(tenant="one"), prefix)
    assert turn.stats.reused == 40 and turn.token_ids == send(engine(NaiveEngine).open(), prefix).token_ids
    assert send(theirs.open(tenant="three"), prefix).stats.reused == 0
    e.check()
    theirs.check()
    with pytest.raises(BadValue, match="a prefix"):
        e.export([10**9])


def test_a_session_that_is_busy_or_closed_is_not_exported():
    e = engine()
    session = e.open()
    request = e.submit(session, token_ids=[5], max_new_tokens=3)
    with pytest.raises(SessionBusy):
        e.export(session)
    request.abort()
    session.close()
    with pytest.raises(SessionClosed):
        e.export(session)


EXPORTER = """
import sys
from pathlib import Path
from tiny import engine
from minstate import Sampling
e = engine()
session = e.open()
session.send(token_ids=list(range(20, 50)), max_new_tokens=5, sampling=Sampling(ignore_eos=True))
Path(sys.argv[1]).write_bytes(e.export(session))
print(*session.send(token_ids=[7, 8], max_new_tokens=5, sampling=Sampling(ignore_eos=True)).token_ids)
"""


def test_another_process_goes_on_with_the_same_tokens(tmp_path):
    here = Path(__file__).resolve().parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    run = [sys.executable, "-c", EXPORTER, tmp_path / "moved"]
    said = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    turn = send(engine().adopt((tmp_path / "moved").read_bytes()), [7, 8])
    assert turn.token_ids == tuple(map(int, said.split())) and turn.stats.prefilled == turn.stats.delta


# ---- Another precision


@cache
def model_in(dtype):
    """The same weights, as they would be loaded in a precision. They are those of a float32 model."""
    hf = hf_model("llama", torch.float64)
    config = replace(ModelConfig.from_hf(hf.config.to_dict()), max_positions=256)
    return Model(config, {name: value.detach().to(torch.float32).to(dtype) for name, value in hf.state_dict().items()})


def engine_in(dtype):
    return Engine(model_in(dtype), tokenizer(), eos_ids=[2], page_size=4, num_pages=64)


@pytest.mark.parametrize("target", [torch.float64, torch.bfloat16])
def test_another_precision_is_converted_where_that_is_asked_for_and_says_so(target):
    e, theirs = engine_in(torch.float32), engine_in(target)
    session = e.open()
    send(session, list(range(20, 50)))
    data = e.export(session)
    with pytest.raises(UnreadableSession, match=r"another precision, torch.float32: convert=True"):
        theirs.adopt(data)
    theirs.check()
    assert theirs.pool.allocator.num_free == 64
    with pytest.warns(UserWarning, match=f"converted from torch.float32 to {target}") as warned:
        adopted = theirs.adopt(data, convert=True)
    assert warned[0].filename == __file__
    turn = send(adopted, [7, 8])
    assert turn.stats.prefilled == turn.stats.delta == 3
    expected = send(engine_in(target).open(), [*session.token_ids, 7, 8])
    assert turn.token_ids == expected.token_ids == send(session, [7, 8]).token_ids
    theirs.check()


def test_another_model_is_refused_even_if_conversion_is_asked_for():
    e = engine(family="qwen2")
    session = e.open()
    send(session, list(range(20, 50)))
    with pytest.raises(UnreadableSession, match="another model"):
        engine_in(torch.bfloat16).adopt(e.export(session), convert=True)
    with pytest.raises(UnreadableSession, match="damaged"):
        e.adopt(e.export(session)[:-1])
