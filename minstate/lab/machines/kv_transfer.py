"""What it takes to move a session's K/V to another machine: a prediction from the rates of links."""

from minstate.lab.machines.data_sheets import DTYPE
from minstate.lab.machines.turn_seconds import Machine
from minstate.model_config import ModelConfig

LINK_SHARE = 0.8  # of a link's nominal rate that is reached: assumed
LINKS = {  # bytes a second, in one direction
    "25 Gbit/s Ethernet": 25e9 / 8,
    "100 Gbit/s Ethernet": 100e9 / 8,
    "400 Gbit/s InfiniBand": 400e9 / 8,  # data sheet of the ConnectX-7 adapter
    "NVLink": 450e9,  # data sheet of the H100: 900 GB/s, which counts both directions
}


def transfer_s(config: ModelConfig, n: int, bytes_per_s: float) -> float:
    """Seconds to send the K/V of `n` tokens over a link."""
    return n * config.kv_bytes_per_token(DTYPE) / (LINK_SHARE * bytes_per_s)


def break_even_bytes_per_s(machine: Machine, config: ModelConfig, n: int) -> float:
    """The rate of a link over which moving the K/V of `n` tokens takes as long as computing them again."""
    return n * config.kv_bytes_per_token(DTYPE) / (LINK_SHARE * machine.prefill_s(config, n, n))
