"""Answers to the quiz of part V, with explanations. The shares and factors are computed here."""

# %% q1: two mechanisms that overlap
# A adds 6 if it comes first, and 10 - 2 = 8 if it comes second. The mean of both orders is 7; B gets the other 3.
from minstate.lab.bench.shapley import shapley

value = {frozenset(): 0, frozenset("A"): 6, frozenset("B"): 2, frozenset("AB"): 10}
answer = shapley("AB", value)["A"]

# %% q2: either of two achieves it all
# Each adds 8 if it comes first, and 0 if it comes second. "What does it add to the rest?" would say 0 for both of them,
# and "what does it achieve alone?" 8 for both, which is 16 in all.
from minstate.lab.bench.shapley import shapley

value = {frozenset(): 0, frozenset("A"): 8, frozenset("B"): 8, frozenset("AB"): 8}
answer = shapley("AB", value)["A"]

# %% q3: Amdahl's law
# 9 s become 0.5 s, and the other second stays: 10 / 1.5.
answer = 10 / (9 / 18 + 1)

# %% q4: a fair comparison
# B. The claim is about what an engine keeps between turns. Everything else has to be the same on both sides, and the
# other side has to be as good as it can be with its prefix cache on. A measures forgetfulness, C two settings at once,
# and D one run each, on a clock that wanders by more than the difference.
answer = "B"

# %% q5: another machine
# A. Remembering saves arithmetic, namely the prefill of old tokens. A machine that multiplies ten times as fast makes
# exactly this part cheap, and reads memory only twice as fast for what remains. So less is gained.
answer = "A"

# %% q6: whose seconds
# GPU-seconds count each GPU for as long as it is in use: 4 · 0.5.
answer = 4 * 0.5

# %% q7: the false sentence about an interval
# D is false. Drawing again from the observations tells how much the median would vary with other turns of the same
# kind. Of machines that were not measured it knows nothing.
answer = "D"
