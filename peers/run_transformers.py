"""Hugging Face transformers: `generate` on the whole prompt, or with a `DynamicCache` that calls share."""

import time
from itertools import takewhile

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class FirstToken:
    """A streamer that notes when tokens arrive: first those of the prompt, then the new ones."""

    def __init__(self):
        self.arrivals = []

    def put(self, _):
        """Called with the prompt, and with new tokens."""
        self.arrivals.append(time.perf_counter())

    def end(self):
        """Called after the last token."""


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    torch.set_num_threads(spec["threads"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=spec["dtype"])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if spec["mode"] == "prompt lookup":
        options["prompt_lookup_num_tokens"] = 10
    cache, log = DynamicCache(), []

    def generate(token_ids, count):
        if spec["mode"] == "cache kept":
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(log, token_ids, strict=False)))
            surplus = cache.get_seq_length() - min(common, len(token_ids) - 1)
            if surplus > 0:
                cache.crop(-surplus)
            options["past_key_values"] = cache
        prompt = torch.tensor([token_ids])
        start, streamer = time.perf_counter(), FirstToken()
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            streamer=streamer,
            **options,
        )
        log[:] = output[0].tolist()
        return log[len(token_ids) :], streamer.arrivals[1] - start

    return transformers.__version__, generate
