"""The solution of the exercise in `04_build_a_prefix_tree.ipynb`: the student's file as it is after step 4."""

# %% check-4: step 4
# The complete solution is `my_engine/my_engine.py`, beside this file. Here its part up to step 4 stands in for the
# file that a student writes.
from minstate.lab.course.build import use_solution

use_solution(4)
