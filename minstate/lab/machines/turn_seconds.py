"""How long a turn takes on one machine or another.

Two kinds of machine answer the same questions. A `DataSheetMachine` is not at hand, so all its answers are predictions.
A `FittedMachine` is fitted to turns that were measured; for any other model than the measured one, it predicts, too.
"""

from dataclasses import dataclass, replace

from minstate.draft_budget import CostTable
from minstate.lab.machines.cost_fit import CostFit, query_key_pairs
from minstate.lab.machines.data_sheets import DTYPE, Hardware, h100
from minstate.lab.machines.roofline import Roofline
from minstate.model_config import ModelConfig
from minstate.paged_kv import pages_for

PREFILL_CHUNK = 2048  # tokens of a prompt in a forward pass
MAX_DRAFT = 8  # tokens
GPUS = {"135M": 1, "8B": 1, "70B": 4}  # H100s that hold the weights, and work as one
PAGE_SIZE = 16


@dataclass(frozen=True)
class DataSheetMachine:
    """A machine that is not at hand: every forward pass takes as long as `Hardware` predicts."""

    hardware: Hardware

    @staticmethod
    def of_h100(gpus: int, bandwidth: float = 1.0) -> "DataSheetMachine":
        """H100s with `bandwidth` times the memory bandwidth of the data sheet."""
        real = h100(gpus)
        roofline = Roofline(real.roofline.flops_per_s, bandwidth * real.roofline.bytes_per_s)
        return DataSheetMachine(replace(real, roofline=roofline))

    def prefill_s(self, config: ModelConfig, n: int, p: int) -> float:
        """Predicted seconds until the first token, for a prompt of `n` tokens of which the last `p` are forwarded."""
        done, seconds = n - p, 0.0
        while done < n:
            count = min(PREFILL_CHUNK, n - done)
            done += count
            flops = config.flops(count, done, 1 if done == n else 0)
            seconds += self.hardware.seconds(flops, config.bytes_read(done, DTYPE))
        return seconds

    def pass_s(self, config: ModelConfig, tokens: int, context: int, batch_size: int = 1) -> float:
        """Predicted seconds of a forward pass over the last `tokens` of each context, `batch_size` equal contexts."""
        flops = batch_size * config.flops(tokens, context, tokens)
        return self.hardware.seconds(flops, config.bytes_read(batch_size * context, DTYPE))


@dataclass(frozen=True)
class FittedMachine:
    """The machine on which turns of the model `measured` were timed.

    For another model, each term of the fit grows with what it stands for: weights, (query, key) pairs, bytes of K/V.
    The rest is taken to stay as it is, so the result is a prediction even on this machine.

    costs      how much longer a forward pass over several tokens takes than a pass over one
    bandwidth  factor on the bytes that memory delivers in a second
    """

    fit: CostFit
    measured: ModelConfig
    costs: CostTable
    bandwidth: float = 1.0

    def prefill_s(self, config: ModelConfig, n: int, p: int) -> float:
        """Seconds until the first token, for a prompt of `n` tokens of which the last `p` are forwarded."""
        fit = self.fit
        linear = fit.token_s * p * _num_weights(config) / _num_weights(self.measured)
        attention = fit.pair_s * query_key_pairs(n, p) * _query_size(config) / _query_size(self.measured)
        return fit.turn_s + linear + attention

    def pass_s(self, config: ModelConfig, tokens: int, context: int) -> float:
        """Seconds of a forward pass over the last `tokens` of a context."""
        cost = self.costs.at(context)
        weights = self.fit.pass_s * _num_weights(config) / _num_weights(self.measured)
        keys = self.fit.key_s * context * config.kv_bytes_per_token(DTYPE) / self.measured.kv_bytes_per_token(DTYPE)
        return (weights + keys) / self.bandwidth * cost(tokens) / cost(1)


Machine = DataSheetMachine | FittedMachine


def decode_s(
    machine: Machine, config: ModelConfig, n: int, generated: int, *, acceptance: float = 0.0, **options
) -> float:
    """Seconds of the tokens after the first, behind a prompt of `n` tokens.

    acceptance  the probability that a guessed token is right if all before it were; 0: no drafts. Each pass drafts as
                many tokens as pay best, up to `MAX_DRAFT`
    options     of the machine's `pass_s`
    """
    context = n + generated // 2  # on average

    def token_s(drafted: int) -> float:
        tokens = sum(acceptance**i for i in range(drafted + 1))  # that a pass is expected to generate
        return machine.pass_s(config, 1 + drafted, context, **options) / tokens

    return (generated - 1) * min(token_s(drafted) for drafted in range(MAX_DRAFT + 1 if acceptance else 1))


def gpu_seconds(
    machine: DataSheetMachine,
    config: ModelConfig,
    n: int,
    p: int,
    generated: int,
    *,
    batch_size: int = 1,
    acceptance: float = 0.0,
) -> float:
    """Predicted GPU-seconds that a turn is charged with: its prefill, and its share of the decoding passes.

    All turns of the batch have prompts of `n` tokens. Prompts are prefilled one by one, since a long one fills a
    forward pass by itself.
    """
    options = {"acceptance": acceptance, "batch_size": batch_size}
    return machine.hardware.gpus * (
        machine.prefill_s(config, n, p) + decode_s(machine, config, n, generated, **options) / batch_size
    )


def sessions_that_fit(machine: DataSheetMachine, config: ModelConfig, n: int) -> int:
    """How many sessions of `n` tokens have all their K/V beside the weights."""
    return machine.hardware.num_pages(config, PAGE_SIZE) // pages_for(n, PAGE_SIZE)


def _num_weights(config: ModelConfig) -> int:
    """Weights that every forward pass reads."""
    return config.num_layers * config.layer_parameters + config.hidden_size * config.vocab_size


def _query_size(config: ModelConfig) -> int:
    """Size of all query heads of all layers, to which the work for a (query, key) pair is proportional."""
    return config.num_layers * config.num_heads * config.head_dim
