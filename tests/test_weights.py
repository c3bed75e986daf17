"""A model folder is found and read; a damaged one is refused with a message that says what to do."""

import json

import pytest
import tiny
import torch

from minstate import BadValue, DamagedWeights, Engine, MinstateError, ModelNotFound, OutOfPages, UnsupportedModel
from minstate.weights import find_model, read_tensors


@pytest.fixture
def folder(tmp_path):
    """A complete small model in the ordinary format."""
    tiny.hf_model("llama", torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_loads_and_generates(folder):
    engine = Engine.from_pretrained(folder, dtype="float64", num_pages=32)
    assert engine.open().send("hi", max_new_tokens=2).stats.generated <= 2
    assert engine.eos_ids == {2} and engine.model.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_precision_may_be_torchs_own(folder, dtype):
    assert Engine.from_pretrained(folder, dtype=dtype, num_pages=8).model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_by_default_a_cpu_computes_in_float32(folder, dtype):
    assert Engine.from_pretrained(folder, dtype=dtype, num_pages=8).model.dtype == torch.float32


def test_end_of_sequence_ids_come_from_the_generation_config_where_there_is_one(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert Engine.from_pretrained(folder).eos_ids == {0, 2}
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(DamagedWeights):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize("says", [{"eos_token_id": None}, {}])
def test_where_the_configuration_has_no_end_the_tokenizer_s_ends_a_turn(folder, says):
    config = json.loads((folder / "config.json").read_text())
    config.pop("eos_token_id", None)
    (folder / "config.json").write_text(json.dumps(config | says))
    (folder / "generation_config.json").unlink(missing_ok=True)
    engine = Engine.from_pretrained(folder, num_pages=8)
    assert engine.eos_ids == {engine.tokenizer.eos_token_id} != {None}


def test_the_environment_variable_names_the_default(folder, monkeypatch):
    monkeypatch.setenv("MINSTATE_MODEL", str(folder))
    assert find_model() == folder


def test_sharded_weights_load(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, name in enumerate(tensors):
        save_file({name: tensors[name]}, folder / f"model-{i:05}.safetensors")
    assert Engine.from_pretrained(folder).model.config.num_layers == 2


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./not-here", "no-such-org-xyz/no-such-model"])
def test_a_missing_model_says_where_to_get_one(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match=r"minstate\.lab\.fetch.*folder.*Hub id.*MINSTATE_MODEL"):
        find_model(name)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def scramble_header(path):
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def poison(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path)


def lose_a_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [truncate, scramble_header, poison, lose_a_tensor, lambda path: path.unlink()])
def test_damaged_weights_are_refused(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(DamagedWeights):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "file, text, error",
    [
        ("config.json", "{", DamagedWeights),
        ("config.json", "[]", DamagedWeights),
        ("config.json", '{"model_type": "llama"}', DamagedWeights),
        ("config.json", '{"model_type": "mamba"}', UnsupportedModel),
        ("tokenizer.json", "{", DamagedWeights),
        ("tokenizer.json", None, UnsupportedModel),
    ],
)
def test_damaged_folders_are_refused(folder, file, text, error):
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(error):
        Engine.from_pretrained(folder)


def test_a_configuration_of_another_shape_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(DamagedWeights, match="configuration says"):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        *({"dtype": dtype} for dtype in ("int8", "", torch.float16, float)),
        *({"page_size": 0}, {"num_pages": -1}, {"token_budget": 0}, {"num_pages": 1.5}),
    ],
)
def test_absurd_settings_are_refused(folder, settings):
    with pytest.raises(BadValue) as caught:
        Engine.from_pretrained(folder, **settings)
    assert isinstance(caught.value, MinstateError)


def test_a_pool_larger_than_the_machine_is_refused(folder):
    with pytest.raises(OutOfPages, match=r"GB for 1000000000000 KV pages: build the engine with fewer"):
        Engine.from_pretrained(folder, num_pages=10**12)


def test_loading_keeps_the_values_of_the_weights(folder):
    tensors = read_tensors(folder, torch.float32)
    for name, tensor in tiny.hf_model("llama", torch.float32).state_dict().items():
        assert torch.equal(tensors["model.embed_tokens.weight" if name == "lm_head.weight" else name], tensor)
