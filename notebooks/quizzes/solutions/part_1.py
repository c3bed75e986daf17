"""Answers to the quiz of part I, with explanations. Where an answer is a counter, the engine counts it here."""

# %% q1: what a turn prefills
# Of the 500 tokens, 499 have keys and values. The 500th was sampled last and never forwarded, so it belongs to Δ:
# the turn prefills 1 + 40 tokens.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
session = small_engine().open()
session.send(token_ids=range(10, 210), max_new_tokens=300, sampling=FREE)
assert len(session.token_ids) == 500
stats = session.send(token_ids=[7] * 40, max_new_tokens=1, sampling=FREE).stats
answer = stats.prefilled

# %% q2: what a turn forwards
# The prefill of 41 tokens gives the first new token. Each further token needs a forward pass over the one before it,
# and the tenth is sampled and not forwarded: 41 + 9.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
session = small_engine().open()
session.send(token_ids=range(10, 210), max_new_tokens=300, sampling=FREE)
answer = session.send(token_ids=[7] * 40, max_new_tokens=10, sampling=FREE).stats.forwarded

# %% q3: the false sentence about keys and values
# C is false. The key of a token in the second layer is made from the output of the first, in which attention has mixed
# the tokens before it. So the same token at the same position has other keys and values behind another text.
answer = "C"

# %% q4: pages of a session at rest
# 99 tokens have keys and values (the last one was sampled only). Pages of 16 tokens: 6 are full and hold 96 tokens,
# and a seventh holds 3.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

session = small_engine(page_size=16).open()
session.send(token_ids=range(10, 100), max_new_tokens=10, sampling=Sampling(ignore_eos=True))
assert len(session.token_ids) == 100
answer = len(session.sequence.table.pages)

# %% q5: pages that a fork copies
# Full pages are never written again, so only the last, partly filled page is at stake. The first of the two sessions
# that writes into it copies it; the other is then its only owner, and writes in place.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
engine = small_engine(page_size=16)
parent = engine.open()
parent.send(token_ids=range(10, 100), max_new_tokens=10, sampling=FREE)
child, copies, copy_page = parent.fork(), [], engine.pool.copy_page
engine.pool.copy_page = lambda *page: copies.append(page) or copy_page(*page)
for session in (parent, child):
    session.send(token_ids=[7, 8, 9 if session is child else 10], max_new_tokens=4, sampling=FREE)
answer = len(copies)

# %% q6: forgetting and remembering
# The naive engine prefills the whole prompt each time: 100, then 100 + 5 + 10 = 115, then 130, which makes 345. The
# session prefills 100, and then twice Δ = 1 + 10, which makes 122.
from minstate import Sampling
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.engines.small_engine import small_engine

naive, session = small_engine(NaiveEngine).open(), small_engine().open()
inputs = [list(range(10, 110)), [7] * 10, [8] * 10]
FREE = Sampling(ignore_eos=True)
totals = [
    sum(one.send(token_ids=ids, max_new_tokens=5, sampling=FREE).stats.prefilled for ids in inputs)
    for one in (naive, session)
]
assert totals == [345, 122]
answer = totals[0] - totals[1]

# %% q7: what makes a turn prefill more
# B: if the answer did not end with the token that ends a message, Δ also holds the tokens that close it.
# D: tokens of the context whose pages were evicted are computed again, and count as `recomputed`.
# Sampling (A) decides which token is chosen and not how many are forwarded. Another session's turn (C) takes no page
# from this one while there is room.
answer = "BD"

# %% q8: merging two halves
# Each half weighs exp(lse), the sum of its exponentiated scores: (3 · 2 + 1 · 6) / (3 + 1). The plain mean, 4, would
# give a half with little attention as much weight as one with much.
import torch

from minstate.attention import Partial, merge

halves = [(2.0, 3.0), (6.0, 1.0)]
parts = [Partial(torch.full((1, 1, 1, 1), out), torch.tensor([[[total]]]).log()) for out, total in halves]
answer = merge(parts).item()
