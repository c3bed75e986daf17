"""Answers to the quiz of part III, with explanations. Where an answer is a counter, the engine counts it here."""

# %% q1: tokens of one pass
# Two guesses are accepted, and the token that the model chose in place of the third is generated as well. The fourth
# guess stands behind a wrong one, so nothing can be said of it.
from minstate.speculation import Guess, Verdict

draft = tuple(Guess(token, "log", 2, 0.5) for token in (11, 12, 13, 14))
verdict = Verdict(draft, (11, 12, 99))
assert verdict.accepted == 2
answer = len(verdict.sampled)

# %% q2: the rows of that pass
# The last known token and the four guesses: 5 query tokens. Rejected drafts cost a row like any other token.
answer = 1 + 4

# %% q3: when a draft pays
# With a chance of p for each guess, p + p² + p³ + p⁴ tokens are expected beside the one that comes anyway. The draft
# pays if (1 + that) / 48 ms exceeds 1 / 40 ms, so if more than 0.2 further tokens are expected.
worth = {p: sum(p**k for k in range(1, 5)) for p in (0.10, 0.15, 0.20, 0.30)}
answer = min(p for p, tokens in worth.items() if (1 + tokens) / 48 > 1 / 40)

# %% q4: the false sentence about speculation
# C is false. Each token is chosen from the model's own logits with the noise of its own position, with a draft and
# without one. So sampled outputs, and not only greedy ones, are the same token for token (up to rounding).
answer = "C"

# %% q5: what is left for a prefill
# Decodes go first, one token each. The prefill gets the rest of the budget: 64 - 8.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
engine = small_engine(token_budget=64)
for number in range(8):
    engine.submit(engine.open(), token_ids=[10 + number], max_new_tokens=9, sampling=FREE)
engine.step()
long = engine.submit(engine.open(), token_ids=[20 + i % 200 for i in range(500)], max_new_tokens=1, sampling=FREE)
engine.step()
answer = long.sequence.kv_len

# %% q6: how long a prompt is read
# The neighbour decodes in every pass, so 31 tokens of the budget are left: 31 + 31 + 31 + 7.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
engine = small_engine(token_budget=32)
engine.submit(engine.open(), token_ids=[10], max_new_tokens=50, sampling=FREE)
engine.step()
prompt = engine.submit(engine.open(), token_ids=[20 + i for i in range(100)], max_new_tokens=1, sampling=FREE)
before = engine.scheduler.steps
while not prompt.done:
    engine.step()
answer = engine.scheduler.steps - before

# %% q7: who is admitted first
# A step of waiting counts as 256 tokens of cached prefix. After two steps 512 < 600, after three 768 > 600.
from math import ceil

from minstate.scheduler import AGEING

answer = ceil(600 / AGEING)

# %% q8: what a preemption costs
# B and D. The pages that were published stay in the tree until others need the room (B), and noise depends on seed and
# position only (D). The turn is the youngest one (so not A), and it need not begin at its first token again (not C).
answer = "BD"
