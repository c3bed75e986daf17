"""A decode step by the C++ kernels: the logits of plain torch, and as many calls as there are layers."""

import torch

from minstate.lab.engines.kernel_steps import decode_step, layered_model, reference, three_decodes
from minstate.lab.machines.paged_cases import int32


def test_a_step_has_the_reference_s_logits_and_its_calls_are_counted():
    from minstate.cpu import KERNELS
    from minstate.gpu import Shape

    counts = {}
    for layers in (1, 2):
        shape = Shape(tokens=3, sequences=3, max_queries=1, splits=1)
        pool, batch = three_decodes(layers)
        logits, counts[layers] = decode_step(layered_model(layers, "cpu"), pool, batch, shape, KERNELS)
        torch.testing.assert_close(logits, reference(layers), atol=2e-5, rtol=2e-5)
    a_layer = {name: count - counts[1][name] for name, count in counts[2].items()}
    assert a_layer == {"append_kv": 1, "paged_attention": 1, "rms_norm": 2, "silu_mul": 1, "products": 4}
    assert torch.equal(batch.query_start, int32(0, 1, 2, 3))
