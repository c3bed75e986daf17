"""minstate: stateful inference for multi-agent tool calling, small enough to read."""

import os

# By default, OpenMP's waiting threads spin, which is very slow as soon as another program wants a core. torch reads
# this variable when it loads its OpenMP runtime, so it is set before the imports below. A value that the environment
# sets is kept.
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
    EngineBroken,
    EngineClosed,
    EngineMisuse,
    MinstateError,
    ModelNotFound,
    NonFiniteLogits,
    OutOfPages,
    SessionBusy,
    SessionClosed,
    StaleMark,
    TurnTimeout,
    UnreadableSession,
    UnsupportedModel,
    UnsupportedSchema,
)
from minstate.parallel_sampling import choices
from minstate.sampling import Sampling
from minstate.session import Mark, Session
from minstate.speculation import Speculation
from minstate.turn import Turn, TurnStats

__version__ = "0.1.0"
