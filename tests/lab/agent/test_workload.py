"""The workload is drawn from a seed, never repeats itself, and comes from tools that really run."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from minstate.lab.agent.code_base import BUGS, write_code_base
from minstate.lab.agent.script import MAX_CALLS
from minstate.lab.agent.workload import AgenticWorkload
from minstate.lab.agent.workspace import load_schemas, run_tool, write_workspace

ROOT = Path(__file__).resolve().parents[3]
SEEDS = range(10)


@cache
def conversation(seed: int, turns: int = 6) -> list[list[dict]]:
    """The opening and then the messages of each turn."""
    with AgenticWorkload(seed, turns) as workload:
        return [workload.opening, *workload]


def results(conversation: list[list[dict]]) -> list[str]:
    return [messages[-1]["content"] for messages in conversation if messages[-1]["role"] == "tool"]


def calls(conversation: list[list[dict]]) -> list[dict]:
    return [call for messages in conversation for message in messages for call in message.get("tool_calls", [])]


# Shape


def test_a_turn_is_a_task_or_a_tool_call_with_its_result():
    opening, task, *later = conversation(seed=0)
    assert [message["role"] for message in opening] == ["system"]
    assert [message["role"] for message in task] == ["user"]
    assert len(later) == 5
    for assistant, tool in later:
        assert (assistant["role"], tool["role"]) == ("assistant", "tool")
        assert [call["name"] for call in assistant["tool_calls"]] == [tool["name"]]


def test_every_call_fits_the_schemas():
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in load_schemas()}
    for call in calls(conversation(seed=3, turns=1 + MAX_CALLS)):
        schema = schemas[call["name"]]
        assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"])


def test_a_tool_runs_only_when_its_turn_is_asked_for(monkeypatch):
    ran = []
    monkeypatch.setattr("minstate.lab.agent.workload.run_tool", lambda *call: ran.append(call) or run_tool(*call))
    with AgenticWorkload(seed=0) as workload:
        turns = iter(workload)
        next(turns)
        assert len(ran) == 0
        next(turns)
        assert len(ran) == 1


@pytest.mark.parametrize("turns", [1, 2, 12, 1 + MAX_CALLS])
def test_a_workload_has_as_many_turns_as_asked_for(turns):
    for seed in (0, 1, 2):
        whole = conversation(seed, turns)
        assert len(whole) == 1 + turns
        assert not any(result.startswith("error:") for result in results(whole))
        assert len(set(results(whole))) == turns - 1


@pytest.mark.parametrize("turns", [0, -1, 2 + MAX_CALLS])
def test_other_numbers_of_turns_are_refused(turns):
    with pytest.raises(ValueError, match="turns must be between 1 and"):
        AgenticWorkload(turns=turns)


# Determinism and novelty


def test_the_same_seed_gives_the_same_messages():
    with AgenticWorkload(seed=4, turns=12) as workload:
        first, again = list(workload), list(workload)
    assert first == again == conversation(seed=4, turns=12)[1:]


def test_interleaved_iterations_do_not_disturb_each_other():
    with AgenticWorkload(seed=5, turns=8) as workload:
        assert all(one == other for one, other in zip(workload, workload, strict=True))


def test_neither_process_nor_folder_nor_environment_changes_the_messages(tmp_path):
    program = (
        "import json; from minstate.lab.agent.workload import AgenticWorkload\n"
        "with AgenticWorkload(seed=6, turns=12) as workload: print(json.dumps([workload.opening, *workload]))"
    )
    (tmp_path / "deeper").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "123",
        "PYTHONWARNINGS": "always",
        "FORCE_COLOR": "1",
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
        "TMPDIR": str(tmp_path / "deeper"),
    }
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout) == conversation(seed=6, turns=12)


def test_messages_hold_nothing_of_this_machine():
    with AgenticWorkload(seed=7, turns=12) as workload:
        text = json.dumps([workload.opening, *workload])
        assert str(workload.folder) not in text and str(workload.folder.resolve()) not in text
    assert sys.prefix not in text
    assert not re.search(r"\d\.\d+s\b", text)


def test_no_turn_repeats_another():
    for seed in SEEDS:
        turns = [json.dumps(messages) for messages in conversation(seed)]
        assert len(set(turns)) == len(turns)


def test_seeds_share_no_turn():
    conversations = [conversation(seed) for seed in SEEDS]
    for one, other in combinations(conversations, 2):
        assert not {json.dumps(messages) for messages in one} & {json.dumps(messages) for messages in other}
        assert not set(results(one)) & set(results(other))


def test_seeds_differ_in_the_order_of_tools():
    assert len({tuple(call["name"] for call in calls(conversation(seed))) for seed in SEEDS}) >= 3


# The debugging session


def test_tests_fail_until_the_agent_has_fixed_the_bug():
    for seed in SEEDS:
        with AgenticWorkload(seed, turns=8) as workload:
            whole = list(workload)
            (folder,) = workload.folder.iterdir()
            module = folder / workload.code.names["package"] / f"{workload.code.bug.module}.py"
            assert workload.code.bug.right in module.read_text()
            assert run_tool(folder, "run_tests", {}).endswith("OK")
        tests = [text for call, text in zip(calls(whole), results(whole), strict=True) if call["name"] == "run_tests"]
        assert len(tests) == 2
        assert "FAILED" in tests[0] and tests[1].endswith("OK")


def test_six_turns_find_the_bug_and_the_affected_orders():
    for seed in SEEDS:
        whole = conversation(seed)
        assert {"run_tests", "read_file", "edit_file", "query"} <= {call["name"] for call in calls(whole)}
        (rows,) = (text for call, text in zip(calls(whole), results(whole), strict=True) if call["name"] == "query")
        assert len(rows.splitlines()) >= 4


def test_a_test_of_its_module_catches_every_bug_and_some_orders_are_affected(tmp_path):
    seen = set()
    for seed in range(60):
        code = write_code_base(Random(seed))
        with closing(sqlite3.connect(":memory:")) as database:
            for name, (columns, *rows) in code.tables.items():
                database.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
                database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)
            (touched,) = database.execute(f"SELECT count(*) FROM orders o WHERE {code.bug.touched}").fetchone()
        assert touched >= 3, f"seed {seed}: {code.bug}"
        if code.bug.module + code.bug.right[:6] not in seen:
            seen.add(code.bug.module + code.bug.right[:6])
            write_workspace(tmp_path / str(seed), code.files, code.tables)
            report = run_tool(tmp_path / str(seed), "run_tests", {})
            assert "FAILED" in report and "ERROR" not in report
            assert set(re.findall(r'File "tests/test_(\w+)\.py"', report)) == {code.bug.module}
    assert len(seen) == len(BUGS)


# Cleaning up


def test_closing_removes_the_folder_when_iteration_stopped_early():
    with AgenticWorkload(seed=0) as workload:
        turns = iter(workload)
        next(turns)
        folder = workload.folder
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="the workload is closed"):
        next(turns)


def test_closing_removes_the_folder_after_an_exception():
    with pytest.raises(ZeroDivisionError), AgenticWorkload(seed=0) as workload:
        folder = workload.folder
        for _ in workload:
            raise ZeroDivisionError
    assert not folder.exists()


def test_iterating_outside_of_with_is_an_error():
    with pytest.raises(RuntimeError, match="the workload is closed"):
        next(iter(AgenticWorkload(seed=0)))


# Sizes


def test_turns_have_the_sizes_of_an_agents_turns():
    """In characters, so the test needs no tokenizer: prose has about four per token, tables have two."""
    for seed in SEEDS:
        opening, task, *later = conversation(seed)
        schemas = "\n".join(json.dumps(tool) for tool in load_schemas())
        assert 3000 < len(opening[0]["content"] + schemas) < 5500
        assert 220 < len(task[0]["content"]) < 520
        sizes = [len(json.dumps(assistant["tool_calls"])) + len(tool["content"]) for assistant, tool in later]
        assert all(280 < size < 1800 for size in sizes), sizes
        assert max(sizes) > 1.3 * min(sizes)
        assert 3500 < sum(sizes) < 6500, sizes
