"""A model's folder comes from a stranger: the index decides, nothing outside is read, and no value takes all memory."""

import copy
import json
import math
import os
import shutil
import socket
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minstate import (
    BadMessage,
    BadValue,
    DamagedWeights,
    Engine,
    MinstateError,
    OutOfPages,
    Sampling,
    UnsupportedModel,
    memory,
)
from minstate.config_values import HIGHEST, MAY_BE_NULL, SWITCHES
from minstate.memory import default_pages, free_bytes
from minstate.model_config import ModelConfig
from minstate.model_files import INDEX, read_headers, read_json
from minstate.weights import read_tensors


def write_model(folder, family="llama"):
    tiny.hf_model(family, torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A complete small model."""
    return write_model(tmp_path / "model")


@pytest.fixture
def sharded(folder):
    """The same in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), ("model-1.safetensors", "model-2.safetensors")
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def load(folder, **settings):
    return Engine.from_pretrained(folder, **{"num_pages": 32} | settings)


def change(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def replace_tensors(folder, **changes):
    """Other tensors in `model.safetensors`, by name; None takes one away."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def test_the_index_decides_which_file_a_tensor_is_read_from(sharded):
    expected = read_tensors(sharded, torch.float32)
    other = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    save_file(other, sharded / "model.safetensors")  # left over from an earlier version
    other_shard = load_file(sharded / "model-2.safetensors") | {"model.norm.weight": other["model.norm.weight"]}
    save_file(other_shard, sharded / "model-2.safetensors")
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(sharded, INDEX, weight_map=weight_map | {"model.norm.weight": "model-1.safetensors"})
    first_shard = load_file(sharded / "model-1.safetensors") | {"model.norm.weight": expected["model.norm.weight"]}
    save_file(first_shard, sharded / "model-1.safetensors")
    found = read_tensors(sharded, torch.float32)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_without_an_index_the_model_is_in_the_file_of_that_name(folder):
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "a.safetensors")
    assert read_tensors(folder, torch.float32)["model.norm.weight"].all()


def test_a_tensor_in_two_files_is_refused(sharded):
    (sharded / INDEX).unlink()
    load(sharded)
    save_file({"model.norm.weight": torch.ones(32)}, sharded / "model-3.safetensors")
    with pytest.raises(DamagedWeights, match=r"model.norm.weight is in model-\d.safetensors and in model-3"):
        load(sharded)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "gone.safetensors", "..", "", "\0"]
)
def test_an_index_names_plain_files_of_the_folder(sharded, name):
    shutil.copy(sharded / "model-1.safetensors", sharded.parent / "model.safetensors")
    (sharded / "sub").mkdir()
    shutil.copy(sharded / "model-1.safetensors", sharded / "sub/x.safetensors")
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(sharded, INDEX, weight_map=weight_map | {"model.norm.weight": name})
    with pytest.raises(DamagedWeights, match=r"index.json names"):
        load(sharded)


@pytest.mark.parametrize(
    "weight_map", [None, [], 3, {"model.norm.weight": 3}, {"model.norm.weight": ["a.safetensors"]}]
)
def test_an_index_that_is_none_is_refused(sharded, weight_map):
    change(sharded, INDEX, weight_map=weight_map)
    with pytest.raises(DamagedWeights, match="weight_map"):
        load(sharded)


def test_an_index_that_names_the_wrong_file_is_refused(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    wrong = {"model-1.safetensors": "model-2.safetensors", "model-2.safetensors": "model-1.safetensors"}
    change(sharded, INDEX, weight_map=weight_map | {"model.norm.weight": wrong[weight_map["model.norm.weight"]]})
    with pytest.raises(DamagedWeights, match=r"model.norm.weight is in .* where it is not"):
        load(sharded)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_link_may_not_lead_out_of_the_folder(folder, file):
    shutil.move(folder / file, folder.parent / "elsewhere")
    (folder / file).symlink_to("../elsewhere")
    with pytest.raises(DamagedWeights, match=f"{file}.* leads out of the folder"):
        load(folder)


def test_the_hubs_cache_is_a_folder_of_links(folder):
    repository = folder.parent / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots/abc").mkdir(parents=True)
    for i, path in enumerate(folder.iterdir()):
        shutil.move(path, repository / f"blobs/{i}")
        (repository / "snapshots/abc" / path.name).symlink_to(f"../../blobs/{i}")
    load(repository / "snapshots/abc")


def test_links_in_a_circle_are_refused(folder):
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("generation_config.json")
    (folder / "added_tokens.json").symlink_to("added_tokens.json")
    with pytest.raises(DamagedWeights, match="added_tokens"):
        load(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    (folder / "model.safetensors").unlink()
    torch.save(Touch(), folder / "pytorch_model.bin")
    with pytest.raises(DamagedWeights, match=r"no \*.safetensors \(a pickle"):
        load(folder)
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    with pytest.raises(DamagedWeights, match=r"model.safetensors cannot be read"):
        load(folder)
    assert not (tmp_path / "opened").exists()


def test_no_code_of_a_folder_runs_and_nothing_is_downloaded(folder, tmp_path, monkeypatch):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    named = {
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
    }
    change(folder, auto_map=named)
    change(folder, "tokenizer_config.json", auto_map=named, tokenizer_class="Evil", tokenizer_file="/etc/passwd",
           fast_tokenizer_files=["../tokenizer.9.json"])  # fmt: skip
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    assert load(folder).open().send("hi", max_new_tokens=1).stats.generated == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", INDEX])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "3", "\xff", '{"a": 1' + "0" * 9999 + "}"])
def test_json_that_is_none_is_refused(folder, file, text):
    (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedWeights):
        load(folder)


def test_a_file_that_is_too_large_is_not_read(folder, monkeypatch):
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(DamagedWeights, match=r"config.json has 1,073,741,824 bytes"):
        read_json(folder, "config.json")


def test_a_bias_that_the_configuration_denies_is_refused(folder):
    replace_tensors(folder, **{"model.layers.1.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(UnsupportedModel, match=r"holds model.layers.1.self_attn.q_proj.bias"):
        load(folder)


def test_a_layer_more_than_the_configuration_says_is_refused(folder):
    change(folder, num_hidden_layers=1)
    with pytest.raises(UnsupportedModel, match=r"holds model.layers.1"):
        load(folder)


def test_tensors_that_change_nothing_may_be_there(folder):
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    replace_tensors(folder, **extra, **{"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    load(folder)
    replace_tensors(folder, **{"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    with pytest.raises(DamagedWeights, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load(folder)


def test_weights_that_are_not_floats_are_refused(folder):
    replace_tensors(folder, **{"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    with pytest.raises(DamagedWeights, match=r"model.norm.weight is of I8"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_size": 34, "head_dim": None}, "num_attention_heads"),
        ({"hidden_size": 12, "num_attention_heads": 4, "head_dim": None}, "head_dim"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"eos_token_id": tiny.VOCABULARY}, "eos_token_id"),
        ({"eos_token_id": "2"}, "eos_token_id"),
    ],
)
def test_values_that_no_model_has_are_refused_by_name(folder, values, named):
    change(folder, **values)
    with pytest.raises(DamagedWeights, match=rf"config.json says .* for {named}"):
        load(folder)


def test_llama_3_frequencies_are_in_order(tmp_path):
    folder = write_model(tmp_path, "llama 3 rope")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    change(folder, rope_parameters=rope | {"high_freq_factor": rope["low_freq_factor"]})
    with pytest.raises(DamagedWeights, match="high_freq_factor"):
        load(folder)


NUMBERS = [0, -1, 1, 3, 10**6, 10**12, 2**63, 10**400, 1.5, -1e-9, 1e308, math.nan, math.inf]
NASTY = st.sampled_from([*NUMBERS, True, False, None, "", "32", "x" * 9999, [], [1], {}, {"a": {"b": []}}])
FIELDS = st.sampled_from(
    [*HIGHEST, *SWITCHES, "rope_parameters", "rope_scaling", "hidden_act", "model_type", "eos_token_id"]
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("sound"), "llama 3 rope")
    return folder, json.loads((folder / "config.json").read_text())


@given(changes=st.dictionaries(FIELDS, NASTY, min_size=1, max_size=3), rope=st.dictionaries(FIELDS, NASTY, max_size=2))
def test_a_damaged_configuration_loads_or_is_refused_before_anything_is_allocated(sound, changes, rope):
    folder, config = sound
    if isinstance(config["rope_parameters"], dict) and rope:
        config = config | {"rope_parameters": config["rope_parameters"] | rope}
    (folder / "config.json").write_text(json.dumps(config | changes))
    largest = [0]
    spies = {name: getattr(torch, name) for name in ("empty", "arange", "cat", "stack")}

    def spy(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            largest[0] = max(largest[0], tensor.numel())
            return tensor

        return made

    with pytest.MonkeyPatch.context() as patch:
        for name, make in spies.items():
            patch.setattr(torch, name, spy(make))
        try:
            load(folder)
        except MinstateError as error:
            assert len(str(error)) < 1000
    assert largest[0] < 1 << 26


@pytest.mark.parametrize("name", sorted(HIGHEST))
def test_the_highest_value_of_a_field_is_named(name, sound):
    _, config = sound
    with pytest.raises(DamagedWeights, match=name):
        ModelConfig.from_hf(config | {name: HIGHEST[name] * 2})
    if name not in MAY_BE_NULL:
        with pytest.raises(DamagedWeights, match=name):
            ModelConfig.from_hf(config | {name: None})


def test_shapes_are_checked_before_a_tensor_is_read(folder, monkeypatch):
    change(folder, vocab_size=2**24)
    monkeypatch.setattr(memory, "free_bytes", lambda *_: math.inf)
    monkeypatch.setattr(torch.Tensor, "to", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(DamagedWeights, match=r"embed_tokens.weight is \[\d+, 32\], but the configuration says"):
        load(folder)


def test_what_cannot_fit_is_refused_before_it_is_allocated(folder, monkeypatch):
    change(folder, max_position_embeddings=2**24)
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 10**9)
    monkeypatch.setattr(torch, "arange", lambda *_, **__: pytest.fail("the table was made"))
    with pytest.raises(OutOfPages, match=r"2.15 GB for the rotations of max_position_embeddings; 1.00 GB are free"):
        load(folder)


# What ends a turn.


def eos(folder, config, generation):
    change(folder, eos_token_id=config)
    change(folder, "generation_config.json", eos_token_id=generation)
    return load(folder).eos_ids


def test_what_ends_a_turn_is_what_any_file_says(folder):
    im_end, other = tiny.tokenizer().eos_token_id, tiny.tokenizer().convert_tokens_to_ids(tiny.SPECIAL[0])
    assert eos(folder, other, None) == {im_end, other}
    assert eos(folder, None, [other]) == {im_end, other}
    assert eos(folder, None, None) == {im_end}


def test_a_word_ends_a_turn_only_if_the_generation_config_says_so(folder):
    im_end, word = tiny.tokenizer().eos_token_id, tiny.tokenizer().encode("#")[0]
    assert eos(folder, word, im_end) == {im_end}
    assert eos(folder, im_end, [word]) == {im_end, word}


# What the tokenizer knows and the model does not.


def add_token(folder, text):
    more = copy.deepcopy(tiny.tokenizer())
    more.add_tokens([text])
    more.save_pretrained(folder)
    return more.convert_tokens_to_ids(text)


def test_a_token_beyond_the_embedding_is_refused_where_it_is_sent(folder):
    token = add_token(folder, "<extra>")
    assert token == tiny.VOCABULARY
    engine = load(folder)
    with pytest.raises(BadMessage, match=rf"'<extra>', token {token}"):
        engine.open(content_may_control=True).send("an <extra> word", max_new_tokens=1)
    engine.open().send("an <extra> word", max_new_tokens=1)  # as text it is but letters
    engine.check()


def test_a_token_beyond_the_embedding_is_refused_at_once_if_the_template_writes_it(folder):
    add_token(folder, "<extra>")
    (folder / "chat_template.jinja").write_text(tiny.CHATML + "<extra>")
    with pytest.raises(UnsupportedModel, match="the chat template writes '<extra>'"):
        load(folder)


# What the maker recommends.


def test_the_recommended_sampling_is_read_on_request(folder):
    values = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "pad_token_id": 0, "min_p": None}
    change(folder, "generation_config.json", **values)
    assert Sampling.from_pretrained(folder) == Sampling(temperature=0.6, top_k=20, top_p=0.95)
    change(folder, "generation_config.json", do_sample=False)
    assert Sampling.from_pretrained(folder).temperature == 0
    change(folder, "generation_config.json", do_sample=True, temperature=None)
    assert Sampling.from_pretrained(folder).temperature == 1
    change(folder, "generation_config.json", temperature="hot")
    with pytest.raises(BadValue, match="temperature"):
        Sampling.from_pretrained(folder)
    (folder / "generation_config.json").unlink()
    assert Sampling.from_pretrained(folder) == Sampling()


# How large the pool is.

CONFIG = SimpleNamespace(kv_bytes_per_token=lambda _: 1000, max_positions=8192)


@pytest.mark.parametrize(("free", "pages"), [(math.inf, 4096), (10**12, 4096), (40 * 10**6, 625), (8_192_000, 128)])
def test_the_pool_takes_at_most_a_quarter_of_the_free_memory(free, pages, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: free)
    assert default_pages(CONFIG, torch.float32, "cpu", 16) == pages


def test_a_machine_without_room_for_a_useful_context_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 8_000_000)
    with pytest.raises(OutOfPages, match=r"quarter of the 0.01 GB .* 2,000 tokens"):
        default_pages(CONFIG, torch.float32, "cpu", 16)


def test_what_the_pool_took_can_be_seen(folder):
    assert repr(load(folder, num_pages=None).pool) == "KVPool(65,536 tokens in pages of 16, 0.02 GB)"
    assert repr(load(folder, num_pages=2, page_size=8).pool).startswith("KVPool(16 tokens in pages of 8")


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  16000 kB\nMemAvailable:    8000 kB\n"}
V2 = {"sys/fs/cgroup/memory.max": "3000000\n", "sys/fs/cgroup/memory.current": "1000000\n"}
V1 = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000", "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000"}
CACHE = {"sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 500000\n"}
CACHE_V1 = {"sys/fs/cgroup/memory/memory.stat": "inactive_file 9\ntotal_inactive_file 250000\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, math.inf),
        (MEMINFO, 8000 * 1024),
        (MEMINFO | V2 | CACHE, 2_500_000),
        (MEMINFO | V1 | CACHE_V1, 1_750_000),
        (MEMINFO | V2 | CACHE | {"sys/fs/cgroup/memory.max": "max\n"}, 8000 * 1024),
    ],
)
def test_free_memory_is_what_the_machine_and_its_container_leave(tmp_path, files, free):
    assert free_bytes("cpu", machine(tmp_path, files)) == free


def test_headers_are_read_without_the_tensors(folder):
    file, shape = read_headers(folder)["model.norm.weight"]
    assert (file, shape) == (folder / "model.safetensors", (32,))
