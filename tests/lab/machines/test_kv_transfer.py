"""Moving K/V takes the time of its bytes."""

import pytest

from minstate.lab.machines.data_sheets import DTYPE, LLAMA_8B, MODELS
from minstate.lab.machines.kv_transfer import LINK_SHARE, LINKS, break_even_bytes_per_s, transfer_s
from minstate.lab.machines.turn_seconds import GPUS, DataSheetMachine


def test_at_break_even_moving_takes_as_long_as_computing():
    for model, config in MODELS.items():
        machine = DataSheetMachine.of_h100(GPUS[model])
        rate = break_even_bytes_per_s(machine, config, 8_000)
        assert transfer_s(config, 8_000, rate) == pytest.approx(machine.prefill_s(config, 8_000, 8_000))
    assert transfer_s(LLAMA_8B, 1, LINKS["NVLink"]) == LLAMA_8B.kv_bytes_per_token(DTYPE) / (LINK_SHARE * 450e9)
