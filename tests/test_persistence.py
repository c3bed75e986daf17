"""A session that was saved and loaded continues like the original, and a file that is damaged is refused."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import IDS, SAMPLINGS, engine, hf_model

from minstate import BadValue, Engine, OutOfPages, Sampling, SessionBusy, UnreadableSession, persistence
from minstate.chat.dialect import HERMES
from minstate.model import Model

FREE = Sampling(ignore_eos=True)


@given(
    first=IDS, second=IDS, count=st.integers(1, 9), sampling=SAMPLINGS,
    page_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), forked=st.booleans(), warm=st.booleans(),
)  # fmt: skip
def test_a_loaded_session_generates_the_same_tokens_as_the_saved_one(
    tmp_path_factory, first, second, count, sampling, page_sizes, forked, warm
):
    path = tmp_path_factory.mktemp("saved") / "session"
    ours, theirs = (engine(num_pages=256, page_size=size) for size in page_sizes)
    session = ours.open()
    session.send(token_ids=first, max_new_tokens=count, sampling=sampling)
    session = session.fork() if forked else session
    session.save(path)
    if warm:  # the other engine has K/V of the beginning already
        theirs.open().send(token_ids=first, max_new_tokens=1, sampling=sampling)
    loaded = theirs.load(path)
    theirs.check()
    assert loaded.token_ids == session.token_ids and loaded.resident == session.resident
    options = {"token_ids": second, "max_new_tokens": count, "sampling": sampling}
    original, again = session.send(**options), loaded.send(**options)
    assert original.token_ids == again.token_ids
    assert again.stats.prefilled == again.stats.delta, "nothing is computed again"
    assert session.fork().lineage == loaded.fork().lineage
    theirs.check()


def test_messages_and_tools_are_saved_too(tmp_path):
    tools = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    e = engine(positions=4096, num_pages=600)
    session = e.open([{"role": "system", "content": "short"}], tools)
    session.send("hi", max_new_tokens=4, sampling=FREE)
    session.save(tmp_path / "s")
    loaded = engine(positions=4096, num_pages=600).load(tmp_path / "s")
    assert loaded.messages == session.messages and loaded.transcript.tools == session.transcript.tools
    assert loaded.send("more", max_new_tokens=5).token_ids == session.send("more", max_new_tokens=5).token_ids


def test_evicted_kv_is_not_saved_and_is_computed_again(tmp_path):
    e = engine()
    session = e.open()
    session.send(token_ids=[5] * 30, max_new_tokens=1, sampling=FREE)
    e.cache.make_room(e.pool.allocator.num_pages - 2)
    kept = session.resident
    session.save(tmp_path / "s")
    loaded = engine().load(tmp_path / "s")
    assert loaded.resident == kept < 30
    turn = loaded.send(token_ids=[6], max_new_tokens=3, sampling=FREE)
    assert turn.token_ids == session.send(token_ids=[6], max_new_tokens=3, sampling=FREE).token_ids
    assert turn.stats.recomputed == 30 - kept


@pytest.fixture
def saved(tmp_path):
    session = engine().open()
    session.send(token_ids=[5] * 30, max_new_tokens=2, sampling=FREE)
    session.save(tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.parametrize("at", [0, 9, 200, -1, -500])
def test_a_flipped_bit_is_noticed(saved, at):
    data = bytearray(saved.read_bytes())
    data[at] ^= 1
    saved.write_bytes(data)
    refused(saved, "damaged|format|session")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_noticed(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refused(saved, "damaged")


def refused(path, says, **settings):
    e = engine(**settings)
    with pytest.raises(UnreadableSession, match=says):
        e.load(path)
    e.check()
    assert e.pool.allocator.num_free == e.pool.allocator.num_pages


def test_another_models_session_is_refused(saved):
    refused(saved, "another model", family="qwen2")
    refused(saved, "another model", positions=128)


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"kv": torch.zeros(3)}, tmp_path / "x")
    refused(tmp_path / "x", "format None")


def test_a_pool_that_is_too_small_says_so_and_keeps_nothing(saved):
    e = engine(num_pages=5)
    with pytest.raises(OutOfPages):
        e.load(saved)
    e.check()
    assert e.cache.num_available == 5


def test_a_busy_session_is_not_saved(tmp_path):
    e = engine()
    session = e.open()
    e.submit(session, token_ids=[5], max_new_tokens=3)
    with pytest.raises(SessionBusy):
        session.save(tmp_path / "s")


@pytest.mark.parametrize("seam", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(saved, monkeypatch, seam):
    before = saved.read_bytes()
    session = engine().load(saved)
    session.send(token_ids=[6], max_new_tokens=2, sampling=FREE)

    def broken(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if seam == "write":
            patch.setattr(persistence, "save", broken)
        else:
            patch.setattr("minstate.persistence.replace" if seam == "replace" else "os.fsync", broken)
        with pytest.raises(OSError, match="no space"):
            session.save(saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["s"]
    session.save(saved)
    assert saved.read_bytes() != before


def test_a_session_of_a_model_that_differs_in_one_kind_of_weight_is_refused(saved):
    """A merged adapter is such a model: its embedding and norms are those of the original."""
    e = engine()
    hf = hf_model("llama", torch.float64)
    tensors = {name: tensor.detach().clone() for name, tensor in hf.state_dict().items()}
    same = Engine(Model(e.model.config, tensors), e.tokenizer, page_size=4, num_pages=64)
    assert same.model.fingerprint == e.model.fingerprint
    for name in tensors:
        other = {**tensors, name: tensors[name] + 1e-3}
        if name in e.model.config.tensor_shapes():
            assert Model(e.model.config, other).fingerprint != e.model.fingerprint, name
    changed = {name: tensor + 0.1 * ("q_proj" in name) for name, tensor in tensors.items()}
    with pytest.raises(UnreadableSession, match="another model"):
        Engine(Model(e.model.config, changed), e.tokenizer, page_size=4, num_pages=64).load(saved)


def test_the_tools_of_a_loaded_or_synced_session_are_prepared_as_those_of_an_opened_one(tmp_path):
    tools = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    opened = engine(positions=4096, num_pages=600, speculation=True)
    session = opened.open([{"role": "system", "content": "short"}], tools)
    session.send("hi", max_new_tokens=4, sampling=FREE)
    session.save(tmp_path / "s")
    known = HERMES.opening(tools[0])

    def guessable(e, one):
        tokens = one.sequence.speculator.corpus.tokens  # −1, which is not a token id, separates documents
        return known in e.tokenizer.decode([max(0, token) for token in tokens])

    loading, syncing = (engine(positions=4096, num_pages=600, speculation=True) for _ in range(2))
    synced = syncing.open()
    synced.sync(session.messages, tools)
    assert guessable(opened, session) and guessable(loading, loading.load(tmp_path / "s"))
    assert guessable(syncing, synced)


def test_a_tenant_that_is_not_a_string_is_refused_before_anything_is_loaded(tmp_path):
    e = engine()
    e.open().save(tmp_path / "session")
    with pytest.raises(BadValue, match="tenant must be a string"):
        e.load(tmp_path / "session", tenant=None)
    e.check()


# ---- Files that others wrote


def forged(path, change, *, signed=True):
    """Rewrite a file so that its checksum is right; its signature is, too, if `signed`."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = persistence.load(data)
    del header["checksum"], header["signature"]
    change(tensors, header)
    header["checksum"] = persistence._checksum(tensors, header)
    header["signature"] = persistence.sign(persistence.user_key(), header["checksum"]) if signed else "0" * 64
    path.write_bytes(persistence.save(tensors, header))


def test_kv_that_this_user_has_not_signed_are_computed_again_and_reach_no_other_session(saved):
    def lies(tensors, header):
        tensors["kv"] += 1
        header["signer"] = "another user"

    forged(saved, lies, signed=False)
    e = engine()
    loaded, other = e.load(saved), e.open()
    assert loaded.resident == 0 and len(loaded.token_ids) == 32
    honest = engine().open().send(token_ids=[5] * 31, max_new_tokens=3, sampling=FREE).token_ids
    assert other.send(token_ids=[5] * 31, max_new_tokens=3, sampling=FREE).token_ids == honest
    shared = loaded.send(token_ids=[6], max_new_tokens=3, sampling=FREE)
    assert shared.stats.reused >= 28, "pages of the tenant's tree are found by their token ids"
    e.check()


def test_kv_whose_signature_does_not_fit_are_refused(saved):
    forged(saved, lambda tensors, header: tensors["kv"].add_(1), signed=False)
    refused(saved, "damaged")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_kv_that_are_not_finite_are_refused(saved, value):
    forged(saved, lambda tensors, header: tensors["kv"][0, 0, 0, 3].fill_(value))
    refused(saved, "not finite")


ODD = [None, -1, 10**30, 1.5, True, "x", [], [[]], {}, [{"role": "x"}], [1, "a"], float("nan"), {"a": 1}]


def mutated(draw):
    """A random change of one field of the header, or of one tensor."""

    def change(tensors, header):
        place = draw.choice(["transcript", "seeds", "options", "header", "deep", "log", "kv", "shape"])
        if place in ("transcript", "seeds", "options"):
            whole = json.loads(header["seeds" if place == "seeds" else "transcript"])
            fields = whole["options"] if place == "options" else whole
            name = draw.choice(sorted(fields))
            if draw.random() < 0.2:
                del fields[name]
            else:
                fields[name] = draw.choice(ODD)
            header["seeds" if place == "seeds" else "transcript"] = json.dumps(whole)
        elif place == "header":
            name = draw.choice(sorted(header))
            header[name] = draw.choice(["", "{", "[]", "null", "x" * 10_000])
            if draw.random() < 0.3:
                del header[name]
        elif place == "deep":
            header["transcript"] = "[" * 50_000 + "]" * 50_000
        elif place == "log":
            log = tensors["log"]
            odd = [log[:5], log.float(), log[None], log[:0], -log, log + 10**6, log.to(torch.int8), log != 0]
            tensors["log"] = draw.choice(odd).contiguous()
        elif place == "kv":
            kv = tensors["kv"]
            tensors["kv"] = draw.choice(
                [kv[0], kv.float(), kv[..., :1], kv[:, :, :, :0], kv[0, 0, 0, 0], kv * torch.nan]
            )
            tensors["kv"] = tensors["kv"].contiguous()
        else:
            tensors.pop(draw.choice(["log", "kv"]))

    return change


def test_a_file_of_odd_content_is_loaded_rightly_or_refused_and_the_engine_stays_whole(tmp_path):
    source = engine(positions=4096, num_pages=600)
    session = source.open([{"role": "system", "content": "short"}], [{"name": "look", "parameters": {}}])
    session.send("hi", max_new_tokens=3, sampling=FREE)
    session.save(tmp_path / "s")
    whole, draw, outcomes = (tmp_path / "s").read_bytes(), Random(0), {True: 0, False: 0}
    e = engine(positions=4096, num_pages=600)
    other = e.open()
    for _ in range(300):
        (tmp_path / "s").write_bytes(whole)
        forged(tmp_path / "s", mutated(draw))
        try:
            loaded = e.load(tmp_path / "s")
        except UnreadableSession:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            loaded.close()
        e.check()
    assert outcomes[False] > 150 and outcomes[True] > 5
    assert other.send(token_ids=[5] * 9, max_new_tokens=3, sampling=FREE).token_ids


# ---- Files as other tools write them


def test_a_file_has_the_mode_that_other_tools_give_it_and_keeps_the_one_it_had(saved):
    other = saved.parent / "other"
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode
    saved.chmod(0o640)
    engine().open().save(saved)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640


def test_a_link_is_written_through_a_long_name_fits_and_a_folder_is_refused(tmp_path):
    session = engine().open()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    session.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and engine().load(tmp_path / "target").token_ids == []
    session.save(tmp_path / ("n" * 255))
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        session.save(tmp_path / "folder")
    session.save(os.devnull)
    assert Path(os.devnull).is_char_device() and len([*tmp_path.iterdir()]) == 4


def test_what_a_killed_save_has_left_is_removed_and_what_a_live_one_writes_is_not(saved, monkeypatch):
    """A killed process leaves a file without a lock. The second save here runs inside the first."""
    session, inner = engine().open(), []
    left = None

    def observed(temporary, path):
        nonlocal left
        left = temporary.with_name(temporary.name + "left")
        if not inner:
            inner.append(True)
            left.write_bytes(b"half of a session")
            session_too.save(saved)
            assert temporary.exists() and not left.exists()
        temporary.rename(path)

    session_too = engine().open()
    monkeypatch.setattr(persistence, "replace", observed)
    session.save(saved)
    assert inner and [*saved.parent.iterdir()] == [saved]


def test_a_file_is_loaded_whole_while_another_process_saves(tmp_path):
    """Each load finds one of the two sessions that the other process writes in turn, never a mixture, never nothing."""
    path, stop = tmp_path / "s", tmp_path / "stop"
    writer = """
import sys
from pathlib import Path
from tiny import engine
from minstate import Sampling
path, stop = map(Path, sys.argv[1:])
sessions = [engine().open(), engine().open()]
for number, session in enumerate(sessions):
    session.send(token_ids=[5 + number] * (20 + 20 * number), max_new_tokens=1, sampling=Sampling(ignore_eos=True))
while not stop.exists():
    for session in sessions:
        session.save(path)
"""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", writer, path, stop], env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE
    )
    try:
        while not path.exists():
            assert process.poll() is None, process.stderr.read().decode()
        e, found = engine(), set()
        for _ in range(60):
            with e.load(path) as session:
                found.add((session.token_ids[0], len(session.token_ids)))
                e.check()
    finally:
        stop.touch()
        process.wait(timeout=60)
    assert found <= {(5, 21), (6, 41)} and process.returncode == 0
