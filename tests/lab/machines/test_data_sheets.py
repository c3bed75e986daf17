"""Data sheets: sizes of models, and the time of a step on a GPU that is not at hand."""

import pytest

from minstate import BadValue
from minstate.lab.machines.data_sheets import DTYPE, LLAMA_8B, LLAMA_70B, MODELS, SMOLLM2_135M, h100, weight_bytes


def test_data_sheets_are_read_as_they_stand():
    assert weight_bytes(LLAMA_8B) == pytest.approx(2 * 8.03e9, rel=0.01)
    assert weight_bytes(LLAMA_70B) == pytest.approx(2 * 70.6e9, rel=0.01)
    assert weight_bytes(SMOLLM2_135M) == pytest.approx(2 * 134.5e6, rel=0.01)
    assert LLAMA_8B.kv_bytes_per_token(DTYPE) == 131_072
    assert h100(4).num_pages(LLAMA_70B, 64) > 0
    with pytest.raises(BadValue, match="141 GB of weights do not fit into H100"):
        h100().num_pages(LLAMA_70B, 64)
    gpu = h100()
    assert gpu.seconds(989e12, 0) == pytest.approx(1 / gpu.efficiency + gpu.overhead_s)
    assert gpu.seconds(0, 3.35e12) == gpu.seconds(989e12, 3.35e12)
    assert set(MODELS) == {"135M", "8B", "70B"}
