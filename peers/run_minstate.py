"""minstate itself, with one session for as long as each prompt extends the session's log."""

from importlib.metadata import version

import torch

from minstate.engine import Engine
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.sampling import Sampling

MODES = {
    "stateless": (NaiveEngine, False, None),
    "prefix reuse": (PrefixReuseEngine, False, None),
    "stateful": (Engine, False, None),
    "stateful and prompt lookup": (Engine, True, None),
    "stateful, prompt lookup and 8-bit K/V": (Engine, True, "int8"),
}


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    torch.set_num_threads(spec["threads"])
    kind, speculation, kv_dtype = MODES[spec["mode"]]
    engine = kind.from_pretrained(
        spec["model"], dtype=spec["dtype"], num_pages=1024, speculation=speculation, kv_dtype=kv_dtype
    )
    session = engine.open()

    def generate(token_ids, count):
        nonlocal session
        if token_ids[: len(session.sequence.log)] != session.sequence.log:
            session = engine.open()
        new = token_ids[len(session.sequence.log) :]
        turn = session.send(token_ids=new, max_new_tokens=count, sampling=Sampling(ignore_eos=True))
        return turn.token_ids, turn.stats.ttft_s

    return version("minstate"), generate
