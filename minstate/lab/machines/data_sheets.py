"""Machines and models that are not at hand, as their data sheets describe them. All seconds are predictions."""

import math
from dataclasses import dataclass

import torch

from minstate.errors import BadValue
from minstate.lab.machines.roofline import Roofline
from minstate.model_config import ModelConfig

DTYPE = torch.bfloat16
USABLE = 0.9  # share of the memory that weights and pages may take


@dataclass(frozen=True)
class Hardware:
    """One GPU, or several as one: memories, bandwidths and FLOP/s add up, and communication between them is free.

    memory       bytes
    roofline     FLOP/s of dense bfloat16 products and bytes/s, by the data sheet
    efficiency   share of the roofline that is reached; gpt-fast reports 0.69 for decoding on an A100
    overhead_s   seconds that every step takes besides its forward pass: launches, sampling, the scheduler
    host_memory  bytes of host memory for pages of K/V, and how fast they are copied there and back
    """

    name: str
    gpus: int
    memory: float
    roofline: Roofline
    efficiency: float = 0.6
    overhead_s: float = 0.002
    host_memory: float = 0.0
    host_bytes_per_s: float = math.inf

    def seconds(self, flops: float, bytes_read: float) -> float:
        """Predicted duration of one step."""
        return self.roofline.floor_s(flops, bytes_read) / self.efficiency + self.overhead_s

    def num_pages(self, config: ModelConfig, page_size: int) -> int:
        """Pages of K/V that fit beside the weights. Raises `BadValue` if the weights do not fit."""
        room = USABLE * self.memory - weight_bytes(config)
        if room <= 0:
            raise BadValue(f"{weight_bytes(config) / 1e9:.0f} GB of weights do not fit into {self.name}")
        return int(room // (page_size * config.kv_bytes_per_token(DTYPE)))


def h100(gpus: int = 1) -> Hardware:
    """H100 SXM, 80 GB: 989 TFLOP/s dense bfloat16, 3.35 TB/s; PCIe 5.0 to its host, 64 GB/s, of which we take 80 %.

    The host's 200 GB for each GPU are assumed: machines with eight of them have 2 TB.
    """
    name, host = "H100" if gpus == 1 else f"{gpus} × H100", (gpus * 200e9, gpus * 0.8 * 64e9)
    return Hardware(name, gpus, gpus * 80e9, Roofline(gpus * 989e12, gpus * 3.35e12), 0.6, 0.002, *host)


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of all weights."""
    return DTYPE.itemsize * sum(math.prod(shape) for shape in config.tensor_shapes().values())


def _llama3(num_layers: int, hidden_size: int, mlp_size: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        mlp_size=mlp_size,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_positions=131_072,
        norm_eps=1e-5,
        ropes=(),  # a rotation costs nothing
        windows=(None,) * num_layers,
        tied_embeddings=False,
    )


SMOLLM2_135M = ModelConfig(
    num_layers=30,
    hidden_size=576,
    mlp_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49_152,
    max_positions=8_192,
    norm_eps=1e-5,
    ropes=(),
    windows=(None,) * 30,
    tied_embeddings=True,
)
LLAMA_8B = _llama3(32, 4096, 14_336, 32)  # Llama 3.1
LLAMA_70B = _llama3(80, 8192, 28_672, 64)
MODELS = {"135M": SMOLLM2_135M, "8B": LLAMA_8B, "70B": LLAMA_70B}
