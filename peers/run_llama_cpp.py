"""llama.cpp through llama-cpp-python, which keeps the K/V of the longest common prefix from call to call."""

import time

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

KV_TYPES = {"float32": llama_cpp.GGML_TYPE_F32, "bfloat16": llama_cpp.GGML_TYPE_F16}


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    lookup = spec["mode"] == "prompt lookup"
    model = llama_cpp.Llama(
        spec["gguf"],
        n_ctx=8192,
        n_batch=512,
        n_threads=spec["threads"],
        n_threads_batch=spec["threads"],
        type_k=KV_TYPES[spec["dtype"]],
        type_v=KV_TYPES[spec["dtype"]],
        flash_attn=True,
        logits_all=lookup,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10) if lookup else None,
        verbose=False,
    )

    def generate(token_ids, count):
        start = time.perf_counter()
        tokens = model.generate(token_ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        new = [next(tokens)]
        first_s = time.perf_counter() - start
        new += [next(tokens) for _ in range(count - 1)]
        tokens.close()
        return new, first_s

    return llama_cpp.__version__, generate
