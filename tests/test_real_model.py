"""The default model: our logits are transformers', and remembering changes no token of an agent's conversation."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from minstate import Engine, Sampling
from minstate.attention import TorchAttention
from minstate.lab.agent.workload import AgenticWorkload
from minstate.lab.engines.baselines import NaiveEngine
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence
from minstate.weights import find_model

EPSILON = 1e-3  # top-two logit gap below which float32 rounding may decide which token comes first


@cache
def real_engine(dtype: str = "float32") -> Engine:
    return Engine.from_pretrained(dtype=dtype)


@cache
def transcript() -> list[int]:
    """The ids of a turn of an agent's conversation, system message and tool schemas included."""
    engine = real_engine()
    with AgenticWorkload(seed=1, turns=1) as workload, engine.open(workload.opening, workload.tools) as session:
        session.send(next(iter(workload)), max_new_tokens=8)
        return session.token_ids


def all_logits(engine: Engine, ids: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits `[len(ids), vocab]`, forwarded in chunks of the given sizes over the engine's own pages."""
    sequence, rows = Sequence(engine.pool), []
    for count in chunks:
        sequence.log = ids[: sequence.kv_len + count]
        batch = RaggedBatch.build([sequence.chunk(count)])
        batch = RaggedBatch(**{**vars(batch), "logit_rows": torch.arange(count)})
        rows.append(engine.model.forward(batch, TorchAttention(engine.pool, batch)))
        sequence.table.commit()
    assert sequence.kv_len == len(ids)
    sequence.table.truncate(0)
    return torch.cat(rows)


@pytest.mark.parametrize("chunks", [[200], [1, 63, 16, 100, 1, 1, 18]], ids=["whole", "in chunks, cached"])
def test_logits_are_as_exact_as_those_of_transformers(chunks):
    """Two programs that sum in different orders differ in float32; ours may not be much further from the truth."""
    ids = transcript()[:200]
    with torch.no_grad():
        theirs, exact = (
            AutoModelForCausalLM.from_pretrained(find_model(), dtype=dtype)(torch.tensor([ids])).logits[0]
            for dtype in (torch.float32, torch.float64)
        )
    ours = all_logits(real_engine(), ids, chunks)
    assert (exact - theirs).abs().max() < 1e-3  # what float32 rounds away; logits go up to 40
    assert (ours - exact).norm() < 3 * (theirs - exact).norm()


def test_generate_of_transformers_says_the_same():
    ids = transcript()[:300]
    oracle = AutoModelForCausalLM.from_pretrained(find_model(), dtype=torch.float32)
    theirs = oracle.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0, len(ids) :].tolist()
    with real_engine().open() as session:
        assert list(session.send(token_ids=ids, max_new_tokens=24).token_ids) == theirs


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=11)], ids=["greedy", "sampled"]
)
def test_stateful_and_naive_say_the_same(sampling):
    stateful = real_engine()
    naive = NaiveEngine(stateful.model, stateful.tokenizer, eos_ids=stateful.eos_ids, num_pages=256)
    with AgenticWorkload(seed=2, turns=2) as workload:
        sessions = [
            engine.open(workload.opening, workload.tools, tenant=repr(sampling)) for engine in (stateful, naive)
        ]
        for ours, theirs in zip(workload, workload, strict=True):
            turns = [
                session.send(messages, max_new_tokens=12, sampling=sampling)
                for session, messages in zip(sessions, (ours, theirs), strict=True)
            ]
            stateful.check()
            _require_equal(*turns, log=sessions[1].token_ids, engine=naive)
            assert turns[0].stats.prefilled == turns[0].stats.delta
            assert turns[1].stats.prefilled == turns[1].stats.context + turns[1].stats.delta
        for session in sessions:
            session.close()


def test_a_small_pool_says_the_same_as_a_large_one():
    """Eight agents over a quarter of the pages that they hold together: everything they lose is computed again."""
    large = real_engine()
    ids = large.tokenizer.encode(" ".join(message["content"] for message in AgenticWorkload(seed=5).opening))

    def serve(engine, tenant):
        sessions = [engine.open(tenant=tenant) for _ in range(8)]
        turns = [
            session.send(token_ids=ids[start : start + 25], max_new_tokens=4)
            for start in (0, 300)
            for start, session in enumerate(sessions, start)
        ]
        engine.check()
        return turns, sum(-(-session.resident // 4) for session in sessions)

    plenty, working_set = serve(large, tenant="small pool")
    small = Engine(large.model, large.tokenizer, eos_ids=large.eos_ids, page_size=4, num_pages=working_set // 4)
    scarce, left = serve(small, tenant="small pool")
    assert left <= working_set // 4 and sum(turn.stats.recomputed for turn in scarce) > 100
    assert sum(turn.stats.recomputed for turn in plenty) == 0
    for ours, theirs in zip(scarce, plenty, strict=True):
        assert ours.token_ids == theirs.token_ids


def _require_equal(ours, theirs, log, engine) -> None:
    """Equal ids; at a first mismatch the two best logits must be closer than rounding, else it is an error."""
    if ours.token_ids == theirs.token_ids:
        return
    first = next(i for i, (a, b) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)) if a != b)
    prompt = log[: len(log) - len(theirs.token_ids) + first]
    best = all_logits(engine, prompt, [len(prompt)])[-1].topk(2).values
    gap = float(best[0] - best[1])
    assert gap < EPSILON, f"token {first} differs although the best two logits are {gap:.2e} apart"
    pytest.fail(f"a tie at token {first} (gap {gap:.2e}): choose another seed for this workload")


def test_bfloat16_agrees_where_the_choice_is_clear():
    """Teacher-forced on float32's history: nearly all choices agree, and the others were close calls."""
    ids = transcript()[:600]
    exact = all_logits(real_engine(), ids, [300, 300])
    rounded = all_logits(real_engine("bfloat16"), ids, [300, 300]).float()
    agree = exact.argmax(-1) == rounded.argmax(-1)
    chosen = exact.gather(-1, rounded.argmax(-1, keepdim=True))[:, 0]
    gaps = (exact.max(-1).values - chosen)[~agree]
    assert agree.float().mean() > 0.95
    assert gaps.numel() == 0 or gaps.max() < 0.5


def test_the_default_model_answers():
    with real_engine().open() as session:
        assert "Paris" in session.send("What is the capital of France?", max_new_tokens=12).text


def test_text_streams_in_whole_characters():
    said = "naïve – 日本語 🙂 done"
    engine = real_engine()
    with engine.open() as session:
        stream = session.stream("hi", replay=engine.tokenizer.encode(said))
        pieces = [token.text for token in stream]
    assert "".join(pieces) == stream.turn.text == said
    assert "" in pieces, "some characters take several tokens"
