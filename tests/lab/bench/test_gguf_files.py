"""The GGUF file holds the folder's weights and tokenizer, in the layout that other engines expect."""

import gguf
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from minstate import UnsupportedModel
from minstate.lab.bench.gguf_files import write_gguf


def folder_of(family: str, path):
    tiny.hf_model(family, torch.float32).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_transformers_reads_the_same_model_back(tmp_path):
    """transformers undoes what GGUF does to the rows of q and k, so equal logits show that the file is right."""
    write_gguf(folder_of("llama", tmp_path), tmp_path / "model.gguf", "float32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, tiny.hf_model("llama", torch.float32)(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind, error", [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_matrices_are_as_exact_as_their_kind(tmp_path, kind, error):
    write_gguf(folder_of("llama", tmp_path), tmp_path / "model.gguf", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    found = gguf.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    expected = tiny.hf_model("llama", torch.float32).model.layers[1].mlp.up_proj.weight.detach().numpy()
    assert np.abs(found - expected).max() <= error * np.abs(expected).max()


@pytest.mark.parametrize("family", ["qwen2", "llama 3 rope", "llama, untied, with biases"])
def test_other_models_are_refused(tmp_path, family):
    with pytest.raises(UnsupportedModel, match="only Llama models"):
        write_gguf(folder_of(family, tmp_path), tmp_path / "model.gguf", "float32")
