"""vLLM on a CPU."""

import vllm
from vllm import LLM, SamplingParams

NGRAM = {"method": "ngram", "num_speculative_tokens": 10, "prompt_lookup_max": 3, "prompt_lookup_min": 2}


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    llm = LLM(
        spec["model"],
        dtype=spec["dtype"],
        max_model_len=8192,
        max_num_seqs=1,
        enable_prefix_caching=spec["mode"] != "stateless",
        speculative_config=NGRAM if spec["mode"] == "prefix caching and ngram" else None,
        disable_log_stats=False,  # among them the time of the first token
    )

    def generate(token_ids, count):
        greedy = SamplingParams(temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)
        (answer,) = llm.generate({"prompt_token_ids": token_ids}, greedy, use_tqdm=False)
        return list(answer.outputs[0].token_ids), answer.metrics.first_token_latency

    return vllm.__version__, generate
