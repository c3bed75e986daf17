"""Write a Llama model as a GGUF file, which llama.cpp and OpenVINO read, so that every engine has the same weights."""

import json
from pathlib import Path

import gguf
import torch

from minstate.errors import UnsupportedModel
from minstate.model_config import ModelConfig
from minstate.weights import read_config, read_tensors

KINDS = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """Write the model in `folder` to `path`: matrices as `kind`, one of `KINDS`, and norms as float32.

    Raises `UnsupportedModel` for a model that is not a plain Llama, or whose tokenizer is not a byte-level BPE.
    """
    raw = read_config(folder)
    config = ModelConfig.from_hf(raw)
    if raw.get("model_type") != "llama" or config.ropes[0].kind != "default" or config.qkv_bias or config.mlp_bias:
        raise UnsupportedModel(f"{folder}: only Llama models without biases and rope scaling are written as GGUF")
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in [
        (writer.add_block_count, config.num_layers),
        (writer.add_context_length, config.max_positions),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_feed_forward_length, config.mlp_size),
        (writer.add_head_count, config.num_heads),
        (writer.add_head_count_kv, config.num_kv_heads),
        (writer.add_rope_dimension_count, config.head_dim),
        (writer.add_rope_freq_base, config.ropes[0].theta),
        (writer.add_layer_norm_rms_eps, config.norm_eps),
        (writer.add_vocab_size, config.vocab_size),
        (writer.add_file_type, KINDS[kind][1]),
    ]:
        add(value)
    _add_tokenizer(writer, folder, raw)
    for name, tensor in read_tensors(folder, torch.float32).items():
        if name in config.tensor_shapes():
            _add_tensor(writer, name, tensor, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, config: ModelConfig, kind: str) -> None:
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads:  # rotary pairs: dimensions 2d and 2d + 1 in GGUF, d and d + D/2 in Hugging Face files
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    quantisation = KINDS[kind][0] if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(_gguf_name(name), gguf.quantize(tensor.numpy(), quantisation), raw_dtype=quantisation)


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, _, i, part = stem.split(".", 3)
    return f"blk.{i}.{LAYER_NAMES[part]}.{kind}"


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, raw: dict) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if tokenizer["model"]["type"] != "BPE":
        raise UnsupportedModel(f"{folder}: only byte-level BPE tokenizers are written as GGUF")
    special = {added["id"] for added in tokenizer["added_tokens"] if added["special"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    types = gguf.TokenType
    writer.add_token_types([types.CONTROL if i in special else types.NORMAL for i in range(len(tokens))])
    writer.add_token_merges(merges)
    for add, key in [(writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")]:
        if isinstance(raw.get(key), int):
            add(raw[key])
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())
