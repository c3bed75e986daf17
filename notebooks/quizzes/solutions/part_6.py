"""Answers to the quiz of part VI, with explanations. Where an answer is a counter, the engine counts it here."""

# %% q1: a turn that is given up
# A turn that fails was never there: the log has its 50 tokens again.
from minstate import Sampling
from minstate.lab.engines.small_engine import small_engine

FREE = Sampling(ignore_eos=True)
session = small_engine().open()
session.send(token_ids=range(10, 50), max_new_tokens=10, sampling=FREE)
assert len(session.token_ids) == 50
stream = session.stream(token_ids=[7] * 10, max_new_tokens=20, sampling=FREE)
for _ in range(7):
    next(stream)
stream.close()
answer = len(session.token_ids)

# %% q2: what a checksum proves
# C. A checksum can be computed by whoever changed the file. A signature needs the key, which the other person does not
# have. Keys and values without a valid signature are not read; they can be computed from the log.
answer = "C"

# %% q3: what a clock tells
# B. The time to the first token tells whether a prefix was cached, so a tenant who chooses prompts can test guesses.
# With a root for each tenant, nothing of another tenant's is ever found, so there is nothing to time.
answer = "B"

# %% q4: a clock in the system prompt
# The first 20 tokens are as before. From the clock on everything has to be computed: 5,000 - 20.
answer = 5000 - 20

# %% q5: a history that was edited
# B. The server looks for the longest history that it knows as a beginning of the one that came. That one ends in front
# of the edit; a fork of its session goes on from there, and the session itself stays for those who did not edit.
answer = "B"

# %% q6: a client that trims
# D. Each request begins differently from the one before it, right behind the system prompt. So its whole rest is
# computed, each time. Trimming rarely and by much computes the rest once, and then reuses it many times.
answer = "D"

# %% q7: the false sentence about the response cache
# A is false. A request that is answered from the response cache forwards nothing, so it says nothing about what an
# engine's turns cost. It is counted apart.
answer = "A"
