"""On a GPU, the engine generates the same tokens as on the CPU. Without a GPU, it says that there is none."""

import pytest
import torch

from minstate import BadValue, Engine, Sampling

QUESTION = "List the files of the project, then read setup.py and tell me its dependencies."


def test_an_unknown_device_is_refused():
    with pytest.raises(BadValue, match="device must be"):
        Engine.from_pretrained(device="tpu")


def test_a_precision_that_the_kernels_do_not_have_is_refused():
    with pytest.raises(BadValue, match="not in float64"):
        Engine.from_pretrained(device="cuda", dtype="float64")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_device_cuda_is_refused():
    with pytest.raises(BadValue, match="needs an NVIDIA GPU"):
        Engine.from_pretrained(device="cuda")


def conversation(engine, tmp_path):
    """The tokens of a session, of its fork, of the session rolled back, and of the session loaded from a file."""
    session = engine.open([{"role": "system", "content": "You are a helpful assistant. " * 20}])
    replies = [session.send(QUESTION, max_new_tokens=24, sampling=Sampling(ignore_eos=True)).token_ids]
    mark, child = session.mark(), session.fork()
    for one, text in [(session, "And the tests?"), (child, "And the docs?")]:
        replies.append(one.send(text, max_new_tokens=16).token_ids)
    session.rollback(mark)
    session.save(tmp_path / "session")
    loaded = engine.load(tmp_path / "session")
    replies.append(loaded.send("And the tests?", max_new_tokens=16).token_ids)
    assert replies[3] == replies[1]
    engine.check()
    return replies


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("speculation", [False, True])
def test_in_float32_a_gpu_generates_the_same_tokens_as_the_cpu(tmp_path, speculation):
    on_gpu = Engine.from_pretrained(device="cuda", dtype="float32", speculation=speculation)
    assert conversation(on_gpu, tmp_path) == conversation(Engine.from_pretrained(), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_default_is_bfloat16():
    assert Engine.from_pretrained(device="cuda").model.dtype == torch.bfloat16
