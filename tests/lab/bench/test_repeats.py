"""A long measurement that was stopped goes on where it was."""

import pandas as pd
import pytest

from minstate.lab.bench import repeats


def test_a_stopped_measurement_goes_on_with_the_repeat_that_it_had_not_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(repeats, "UNFINISHED", tmp_path / "unfinished")
    measured, rows = [], pd.DataFrame({"turn": [1, 2], "seconds": [0.123456789, 2.0], "name": ["a", "b, c"]})

    def measure(repeat: int) -> pd.DataFrame:
        measured.append(repeat)
        if measured == [0, 1]:
            raise KeyboardInterrupt
        return rows

    with pytest.raises(KeyboardInterrupt):
        repeats.measure_repeats("a", 3, measure)
    found = repeats.measure_repeats("a", 3, measure)
    assert measured == [0, 1, 1, 2] and "repeat 1 of a is in" in capsys.readouterr().err
    assert set(found["repeat"]) == {0, 1, 2}
    for repeat, part in found.groupby("repeat"):
        assert part.drop(columns="repeat").to_dict("list") == rows.to_dict("list"), repeat
