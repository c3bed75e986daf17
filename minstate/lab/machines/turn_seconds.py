"""What a turn takes on one machine or another, and what it takes to move it there.

Two kinds of machine answer the same questions: one is fitted to turns that were measured, the other is read off a data
sheet. Whatever the second one says, and whatever the first one says of a model that was not measured, is a prediction.
"""

import math
from dataclasses import dataclass, replace
from random import Random

from minstate.costs import CostTable
from minstate.lab.machines.cost_fit import CostFit, pairs
from minstate.lab.machines.data_sheets import DTYPE, Hardware, h100
from minstate.lab.machines.roofline import Roofline
from minstate.model import ModelConfig

CHUNK = 2048  # tokens of a prompt in a pass
GUESSES = 8  # tokens of a draft at most
GPUS = {"135M": 1, "8B": 1, "70B": 4}  # H100s that hold the weights, and work as one
LINK_SHARE = 0.8  # of a link's nominal rate that is reached: assumed
LINKS = {  # bytes a second, one way
    "25 Gbit/s Ethernet": 25e9 / 8,
    "100 Gbit/s Ethernet": 100e9 / 8,
    "400 Gbit/s InfiniBand": 400e9 / 8,  # data sheet of the ConnectX-7 adapter
    "NVLink": 450e9,  # data sheet of the H100: 900 GB/s, which counts both ways
}


@dataclass(frozen=True)
class DataSheet:
    """A machine that is not at hand: every pass takes as long as `Hardware` says."""

    hardware: Hardware

    @staticmethod
    def of_h100(gpus: int, bandwidth: float = 1.0) -> "DataSheet":
        """H100s, with `bandwidth` times the memory bandwidth that they have."""
        one = h100(gpus)
        return DataSheet(
            replace(one, roofline=Roofline(one.roofline.flops_per_s, bandwidth * one.roofline.bytes_per_s))
        )

    def prefill_s(self, config: ModelConfig, n: int, p: int) -> float:
        """Predicted seconds until the first token: a prompt of `n` tokens, of which the last `p` are forwarded."""
        done, seconds = n - p, 0.0
        while done < n:
            count = min(CHUNK, n - done)
            done += count
            seconds += self.hardware.seconds(config.flops(count, done, int(done == n)), config.bytes_read(done, DTYPE))
        return seconds

    def pass_s(self, config: ModelConfig, tokens: int, context: int, sequences: int = 1) -> float:
        """Predicted seconds of a pass over the last `tokens` of so many contexts, all of the same length."""
        flops = sequences * config.flops(tokens, context, tokens)
        return self.hardware.seconds(flops, config.bytes_read(sequences * context, DTYPE))


@dataclass(frozen=True)
class Fitted:
    """The machine that was measured, with the model `measured`.

    For another model the terms of the fit grow as what they stand for: weights, (query, key) pairs, bytes of K/V. That
    the rest stays as it is makes it a prediction, even on this machine.

    costs      how much longer a pass over several tokens takes than one over one
    bandwidth  times as many bytes a second
    """

    fit: CostFit
    measured: ModelConfig
    costs: CostTable
    bandwidth: float = 1.0

    def prefill_s(self, config: ModelConfig, n: int, p: int) -> float:
        """Seconds until the first token: a prompt of `n` tokens, of which the last `p` are forwarded."""
        fit = self.fit
        linear = fit.token_s * p * _weights(config) / _weights(self.measured)
        attention = fit.pair_s * pairs(n, p) * _query_size(config) / _query_size(self.measured)
        return fit.turn_s + linear + attention

    def pass_s(self, config: ModelConfig, tokens: int, context: int) -> float:
        """Seconds of a pass over the last `tokens` of a context."""
        cost = self.costs.at(context)
        weights = self.fit.pass_s * _weights(config) / _weights(self.measured)
        keys = self.fit.key_s * context * config.kv_bytes_per_token(DTYPE) / self.measured.kv_bytes_per_token(DTYPE)
        return (weights + keys) / self.bandwidth * cost(tokens) / cost(1)


Machine = DataSheet | Fitted


def decode_s(machine: Machine, config: ModelConfig, n: int, generated: int, *, chance: float = 0.0, **options) -> float:
    """Seconds of the tokens after the first, behind a prompt of `n`.

    chance   that a guess is right if all before it were; each pass has as many of them as pay best, up to `GUESSES`
    options  of the machine's `pass_s`
    """
    context = n + generated // 2  # on average

    def a_token(guesses: int) -> float:
        said = sum(chance**i for i in range(guesses + 1))
        return machine.pass_s(config, 1 + guesses, context, **options) / said

    return (generated - 1) * min(a_token(guesses) for guesses in range(GUESSES + 1 if chance else 1))


def gpu_seconds(
    machine: DataSheet, config: ModelConfig, n: int, p: int, generated: int, *, company: int = 1, chance: float = 0.0
) -> float:
    """Predicted GPU-seconds that a turn is charged with: its prompt, and a share of passes that so many turns have.

    All `company` have prompts of `n` tokens. Prompts are read one by one, since a long one fills a pass by itself.
    """
    others = decode_s(machine, config, n, generated, chance=chance, sequences=company) / company
    return machine.hardware.gpus * (machine.prefill_s(config, n, p) + others)


def sessions_that_fit(machine: DataSheet, config: ModelConfig, n: int) -> int:
    """How many sessions of `n` tokens have all their K/V beside the weights."""
    page_size = 16
    return machine.hardware.num_pages(config, page_size) // math.ceil(n / page_size)


def move_s(config: ModelConfig, n: int, bytes_per_s: float) -> float:
    """Seconds to send the K/V of `n` tokens over a link."""
    return n * config.kv_bytes_per_token(DTYPE) / (LINK_SHARE * bytes_per_s)


def break_even(machine: Machine, config: ModelConfig, n: int) -> float:
    """Bytes a second of the link over which moving K/V takes as long as computing them again."""
    return n * config.kv_bytes_per_token(DTYPE) / (LINK_SHARE * machine.prefill_s(config, n, n))


def loads(sessions: int, machines: int, choices: int, *, seed: int = 0) -> list[int]:
    """How many sessions each machine has, when they come one by one and stay where they are.

    choices  of so many machines, drawn at random, a session gets the one with the fewest
    """
    random, load = Random(seed), [0] * machines
    for _ in range(sessions):
        load[min(random.sample(range(machines), choices), key=load.__getitem__)] += 1
    return load


def _weights(config: ModelConfig) -> int:
    """Numbers that every pass reads."""
    return config.num_layers * config.layer_parameters + config.hidden_size * config.vocab_size


def _query_size(config: ModelConfig) -> int:
    """Numbers of all query heads of all layers: what a (query, key) pair is computed from."""
    return config.num_layers * config.num_heads * config.head_dim
