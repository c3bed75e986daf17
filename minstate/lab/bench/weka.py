"""Eviction policies on recorded traffic: a folder of Weka traces, whose conversations run beside each other."""

from pathlib import Path

import pandas as pd

from minstate.errors import BadValue
from minstate.lab.serving.weka import read_weka
from minstate.lab.serving.weka_eviction import compare_on_weka


def weka(traces: str = "", every_s: float = 60.0) -> pd.DataFrame:
    """The hit rate of each eviction policy, and the one that the hashes of the traces allow.

    traces   a folder of traces, such as that of https://github.com/callanjfox/kv-cache-tester
    every_s  a conversation begins so many seconds after the one before it
    """
    files = sorted(Path(traces).glob("*.json")) if traces else []
    if not files:
        raise BadValue(f"traces={traces}: name a folder with Weka traces, *.json")
    return compare_on_weka([read_weka(file) for file in files], every_s=float(every_s))
