"""minstate itself, with one session for as long as each prompt extends the session's log."""

from importlib.metadata import version

import torch

from minstate.engine import Engine
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.sampling import Sampling

MODES = {
    "stateless": (NaiveEngine, False),
    "prefix reuse": (PrefixReuseEngine, False),
    "stateful": (Engine, False),
    "stateful and prompt lookup": (Engine, True),
}


def load(spec):
    """The engine's version, and a function that generates `count` new ids after `token_ids`."""
    torch.set_num_threads(spec["threads"])
    kind, speculation = MODES[spec["mode"]]
    engine = kind.from_pretrained(spec["model"], dtype=spec["dtype"], num_pages=1024, speculation=speculation)
    session = engine.open()

    def generate(token_ids, count):
        nonlocal session
        if token_ids[: len(session.sequence.log)] != session.sequence.log:
            session = engine.open()
        new = token_ids[len(session.sequence.log) :]
        return session.send(token_ids=new, max_new_tokens=count, sampling=Sampling(ignore_eos=True)).token_ids

    return version("minstate"), generate
