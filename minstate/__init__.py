"""minstate: stateful inference for multi-agent tool calling, small enough to read."""

import os

# OpenMP's waiting threads spin by default and collapse as soon as anything else wants a core. The variable is read
# when torch loads its OpenMP runtime, hence before the imports below. Whoever sets it in the environment wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from minstate.chat.drift import Drift
from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.errors import (
    BadMessage,
    BadValue,
    BrokenInvariant,
    ContextOverflow,
    DamagedWeights,
    EngineMisuse,
    MinstateError,
    ModelNotFound,
    OutOfPages,
    SessionBusy,
    SessionClosed,
    StaleMark,
    TurnTimeout,
    UnreadableSession,
    UnsupportedModel,
    UnsupportedSchema,
)
from minstate.sampling import Sampling
from minstate.session import Mark, Session
from minstate.speculation import Speculation
from minstate.turn import Turn, TurnStats

__version__ = "0.1.0"
