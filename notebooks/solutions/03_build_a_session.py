"""The solution of the exercise in `03_build_a_session.ipynb`: the student's file as it is after step 3."""

# %% check-3: step 3
# The complete solution is `my_engine/my_engine.py`, beside this file. Here its part up to step 3 stands in for the
# file that a student writes.
from minstate.lab.course.build import use_solution

use_solution(3)
