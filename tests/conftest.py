import os

import minstate  # noqa: F401  first, since it settles how torch's OpenMP threads wait

import torch  # isort: skip
from hypothesis import HealthCheck, settings

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

common = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", **common, max_examples=40)
settings.register_profile("short", **common, max_examples=8)
settings.register_profile("long", **common, max_examples=1500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
