"""A session that was saved and loaded continues like the original, and a file that is damaged is refused."""

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
