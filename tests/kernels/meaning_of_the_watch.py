"""What `Watch` sees of a kernel: every number that is read or written, by program, and strays, which it holds back."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a kernel can be watched in the interpreter only", allow_module_level=True)

import triton
import triton.language as tl

from minstate.kernels.paged_attention import paged_attention
from minstate.lab.machines.paged_cases import assert_is, ragged
from minstate.lab.machines.watch_kernels import Watch, programs_of


@triton.jit
def careless_copy(x_at, out_at, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_at + i, tl.load(x_at + i))


def test_strays_are_noted_by_program_and_not_let_through():
    memory = torch.zeros(20)
    x, out = torch.arange(10.0), memory[:10]
    with Watch(x=x, out=out) as watch:
        careless_copy[3,](x, out, BLOCK=4)
    assert watch.strays == [("read", (2, 0, 0), 2), ("written", (2, 0, 0), 2)]
    assert torch.equal(out, x) and (memory[10:] == 0).all()
    assert watch.bytes_read("x") == x.nbytes and watch.bytes_read("out") == 0
    assert [list(each.elements) for each in watch.accesses if each.tensor == "x"][-1] == [8, 9]


def test_outside_of_the_block_nothing_is_noted():
    x, out = torch.arange(4.0), torch.zeros(4)
    with Watch(x=x, out=out) as watch:
        pass
    careless_copy[1,](x, out, BLOCK=4)
    assert not watch.accesses and torch.equal(out, x)


def test_the_programs_of_a_launch_cover_what_each_sequence_may_read():
    work = [(299, 1), (142, 8), (216, 40)]
    arguments, expected = ragged(work)
    with Watch(strict=False, q=arguments[0], kv=arguments[1]) as watch:
        out = paged_attention(*arguments, page_size=16, max_queries=40, splits=2)
    assert_is(out, expected)
    for number, (history, queries) in enumerate(work):
        mine = [each for each in programs_of(watch, arguments) if each.sequence == number]
        assert {row for each in mine for row in each.rows} == set(range(2 * queries)), "two heads share a KV head"
        assert {key for each in mine for key in each.keys} == set(range(history + queries))
