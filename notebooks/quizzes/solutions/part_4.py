"""Answers to the quiz of part IV, with explanations. Where an answer is a counter, the engine counts it here."""

# %% q1: what can ever fit
# The pool has 48 slots, and the last new token is never forwarded: 41 + 8 - 1 = 48. The engine refuses a ninth.
import pytest

from minstate import OutOfPages, Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
engine = small_engine(page_size=4, num_pages=12)
answer = engine.open().send(token_ids=range(10, 51), max_new_tokens=8, sampling=FREE).stats.generated
with pytest.raises(OutOfPages):
    engine.open().send(token_ids=range(10, 51), max_new_tokens=9, sampling=FREE)

# %% q2: LRU against Belady
# LRU evicts the very agent that comes next, so all nine turns compute. Belady's rule evicts the agent whose next turn
# is furthest away, and computes six times: the difference is 3.
order, room = "ABCABCABC", 2


def computed(evict):
    memory, count = [], 0  # least recently used first
    for at, agent in enumerate(order):
        if agent not in memory:
            count += 1
            if len(memory) == room:
                memory.remove(evict(memory, order[at + 1 :]))
        memory = [other for other in memory if other != agent] + [agent]
    return count


lru = computed(lambda memory, _: memory[0])
belady = computed(lambda memory, future: max(memory, key=lambda agent: future.find(agent) % (len(future) + 1)))
assert (lru, belady) == (9, 6)
answer = lru - belady

# %% q3: the false sentence about tiers
# D is false. A page's name is a digest of all tokens from the tenant's root on, so a page is found for exactly the
# prefix that it was computed behind, and for no other.
answer = "D"

# %% q4: eight bits
# 64 integers of one byte, and the four bytes of the scale that they share: 68. In float32 it were 256.
import torch

from minstate.kv_int8 import row_width

answer = row_width(64, torch.int8)

# %% q5: move or compute
# A page of 16 tokens has 16 · 46,080 bytes = 737,280 bytes. The disk brings them in 737,280 / 500e6 s = 1.5 ms, and a
# forward pass takes 40 ms: moving pays.
seconds = 16 * 46_080 / 500e6
answer = round(1000 * seconds, 2)

# %% q6: the bound of a decode step
# A decode step reads every weight once: 135 million times 2 bytes are 270 MB, which takes 270e6 / 20e9 s = 13.5 ms. The
# arithmetic, two operations a weight, is far below what the machine can do meanwhile.
answer = 135e6 * 2 / 20e9 * 1000

# %% q7: the false sentence about batches and kernels
# A is false. While memory is the bound, eight sequences share one reading of the weights, so the pass takes nearly as
# long as for one. Eight passes would read them eight times.
answer = "A"

# %% q8: why parts of the keys are merged
# C. In a decode step there is one query row a head, so rows alone cannot keep a GPU busy. Cutting the keys into parts
# gives it more independent work, and log-sum-exp makes the merged result exact.
answer = "C"
