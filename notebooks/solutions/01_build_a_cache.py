"""The solution of the exercise in `01_build_a_cache.ipynb`: the student's file as it is after step 1."""

# %% check-1: step 1
# The complete solution is `my_engine/my_engine.py`, beside this file. Here its part up to step 1 stands in for the
# file that a student writes.
from minstate.lab.course.build import use_solution

use_solution(1)
