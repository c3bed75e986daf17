"""OpenVINO GenAI with continuous batching and prefix caching. Its weights are always float16.

With the dtype float32 it computes in float32, and its K/V is float32 too. Otherwise it uses its own defaults, which on
most CPUs include 8-bit K/V.
"""

import numpy as np
import openvino
import openvino_genai


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    lookup = spec["mode"] == "prefix caching and prompt lookup"
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = spec["mode"] != "stateless"
    scheduler.cache_size = 1  # GB
    options = {"prompt_lookup": True} if lookup else {}
    if spec["dtype"] == "float32":
        options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipeline = openvino_genai.LLMPipeline(
        spec["gguf"],
        "CPU",
        scheduler_config=scheduler,
        INFERENCE_NUM_THREADS=spec["threads"],
        **options,
    )

    def generate(token_ids, count):
        config = openvino_genai.GenerationConfig(max_new_tokens=count, min_new_tokens=count, ignore_eos=True)
        config.do_sample = False
        config.apply_chat_template = False
        if lookup:
            config.num_assistant_tokens, config.max_ngram_size = 10, 3
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(np.array([token_ids], dtype=np.int64)),
            openvino.Tensor(np.ones((1, len(token_ids)), dtype=np.int64)),
        )
        results = pipeline.generate(inputs, config)
        return list(results.tokens[0]), results.perf_metrics.get_ttft().mean / 1000

    return openvino_genai.__version__, generate
