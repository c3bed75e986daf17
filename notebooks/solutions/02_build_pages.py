"""The solution of the exercise in `02_build_pages.ipynb`: the student's file as it is after step 2."""

# %% check-2: step 2
# The complete solution is `my_engine/my_engine.py`, beside this file. Here its part up to step 2 stands in for the
# file that a student writes.
from minstate.lab.course.build import use_solution

use_solution(2)
