"""`make gpu` names what ran, what failed and what was skipped, and a step that hangs does not take the rest."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minstate.lab.bench import on_gpu
from minstate.lab.bench.on_gpu import MOST_SECONDS, SMALLEST, Step, run_steps, steps, summary

ROOT = Path(__file__).resolve().parents[3]


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_a_step_that_fails_hangs_or_cannot_start_does_not_take_the_rest(tmp_path):
    late = tmp_path / "late"
    child = python(f"import time; time.sleep(3); open({str(late)!r}, 'w')")
    hangs = f"import subprocess, time; subprocess.Popen({child!r}); print('begun'); time.sleep(60)"
    todo = [
        Step("fine", python("print('all well')"), 30),
        Step("wrong", python("import sys; print('oh'); sys.exit(3)"), 30),
        Step("hangs", python(hangs), 2),
        Step("absent", ("no-such-command-anywhere",), 30),
        Step("too large", python("print('must not run')"), 30, "needs 40 GB"),
        Step("last", python("print('still here')"), 30),
    ]
    with (tmp_path / "log.txt").open("w") as log:
        outcomes = list(run_steps(todo, log, tmp_path))
    verdicts = ["passed", "failed", "timed out", "failed", "skipped", "passed"]
    assert [outcome.verdict for outcome in outcomes] == verdicts
    assert "exit status 3" in outcomes[1].reason and "no-such-command" in outcomes[3].reason
    text = (tmp_path / "log.txt").read_text()
    assert all(said in text for said in ("all well", "oh", "begun", "still here", "needs 40 GB"))
    assert "must not run\n" not in text
    assert summary(outcomes).splitlines()[-1] == "2 passed, 2 failed, 1 timed out, 1 skipped"
    time.sleep(2)
    assert not late.exists(), "what a step has started is killed with it"


def test_all_steps_together_stay_under_nine_minutes(tmp_path):
    todo = steps(ROOT, tmp_path, memory_gb=80)
    assert sum(step.limit_s for step in todo) <= MOST_SECONDS < 540
    assert [step.name for step in todo if step.missing] in ([], ["memory checker"])
    assert steps(ROOT, tmp_path, memory_gb=24)[-1].missing == "weights and K/V need 40 GB, and this GPU has 24 GB"


def test_without_the_memory_checker_the_reason_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {step.name: step.missing for step in steps(ROOT, tmp_path, memory_gb=80)}
    assert "not on the PATH" in missing["memory checker"]
    checker = tmp_path / "compute-sanitizer"
    checker.write_text("#!/bin/sh\n")
    checker.chmod(0o755)
    assert not any(step.missing for step in steps(ROOT, tmp_path, memory_gb=80))


def test_the_files_and_the_smallest_cases_that_the_steps_name_are_there(tmp_path):
    for step in steps(ROOT, tmp_path, memory_gb=80):
        assert all(Path(word).is_file() for word in step.command if word.startswith(str(ROOT)) and word.endswith(".py"))
    tests = "".join(
        (ROOT / "tests" / "kernels" / f"meaning_of_{name}.py").read_text() for name in ("attention", "the_others")
    )
    names = re.findall(r"def (test_\w+)", tests)
    for part in SMALLEST.split(" or "):
        assert sum(part in name for name in names) == 1, part


def test_with_a_gpu_results_log_and_summary_are_in_one_folder(tmp_path, monkeypatch, capsys):
    class Gpu:
        name, total_memory = "a stand-in", 80e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    monkeypatch.setattr(on_gpu, "OUT", tmp_path)

    def stand_ins(clone, out, memory_gb):
        writes = f"open({str(out / 'kernels.json')!r}, 'w').write('[]')"
        return [Step("kernels", python(writes), 30), Step("traces", python("1 / 0"), 30)]

    monkeypatch.setattr(on_gpu, "steps", stand_ins)
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "stale.json").write_text("of an earlier run")
    assert on_gpu.main() == 1
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == ["kernels.json", "log.txt", "summary.txt"]
    assert "ZeroDivisionError" in (tmp_path / "gpu" / "log.txt").read_text()
    lines = (tmp_path / "gpu" / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("a stand-in, 80 GB") and lines[-1] == "1 passed, 1 failed"
    assert "1 passed, 1 failed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so_and_the_status_is_2():
    run = [sys.executable, "-m", "minstate.lab.bench.on_gpu"]
    done = subprocess.run(run, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: there is no GPU that torch can use, so nothing was run\n"
