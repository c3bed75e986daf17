"""The agent's tools: they act on the workspace, answer every error as text, and touch nothing outside of it."""

import re
from random import Random

import pytest

from minstate.lab.agent.code_base import write_code_base
from minstate.lab.agent.workspace import run_tool, write_workspace


@pytest.fixture
def code():
    return write_code_base(Random("a test"))


@pytest.fixture
def workspace(tmp_path, code):
    folder = tmp_path / "workspace"
    write_workspace(folder, code.files, code.tables)
    return folder


def test_an_edit_is_on_disk(workspace, code):
    path = f"{code.names['package']}/{code.bug.module}.py"
    result = run_tool(workspace, "edit_file", {"path": path, "old": code.bug.wrong, "new": code.bug.right})
    assert code.bug.right in result
    assert code.bug.right in (workspace / path).read_text()


def test_an_edit_back_to_the_bug_is_noticed_at_once(workspace, code):
    """Old bytecode must not hide an edit that keeps size and second."""
    path = f"{code.names['package']}/{code.bug.module}.py"
    for old, new, verdict in [(code.bug.wrong, code.bug.right, "OK"), (code.bug.right, code.bug.wrong, "FAILED")] * 2:
        run_tool(workspace, "edit_file", {"path": path, "old": old, "new": new})
        assert verdict in run_tool(workspace, "run_tests", {}).splitlines()[-1]


def test_a_range_of_lines_is_numbered_and_bounded(workspace, code):
    path = f"{code.names['package']}/pricing.py"
    lines = (workspace / path).read_text().splitlines()
    heading, first, second = run_tool(workspace, "read_file", {"path": path, "first": 5, "last": 6}).splitlines()
    assert heading == f"{path}, lines 5 to 6 of {len(lines)}"
    assert (first, second) == (f"  5  {lines[4]}", f"  6  {lines[5]}")
    (workspace / "long.txt").write_text("word\n" * 500)
    assert len(run_tool(workspace, "read_file", {"path": "long.txt", "first": 1, "last": 500}).splitlines()) == 61


def test_a_search_gives_path_line_and_text(workspace, code):
    hits = run_tool(workspace, "search", {"pattern": rf"def {code.names['bulk']}\("}).splitlines()
    assert len(hits) == 1
    assert re.fullmatch(rf"{code.names['package']}/pricing\.py:\d+: def {code.names['bulk']}\(quantity\):", hits[0])


def test_a_query_gives_a_table_of_at_most_twelve_rows(workspace):
    table = run_tool(workspace, "query", {"sql": "SELECT id, name FROM customers ORDER BY id"}).splitlines()
    assert table[0] == "id | name"
    assert len(table) == 1 + 12 + 1 and table[-1] == "... and more rows"
    assert run_tool(workspace, "query", {"sql": "SELECT id FROM orders WHERE id < 0"}) == "id\nno rows"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("launch", {}, "no tool is called 'launch'"),
        ("search", {}, "needs the argument 'pattern'"),
        ("search", {"pattern": "x", "flags": "i"}, "has no argument 'flags'"),
        ("search", {"pattern": 5}, "must be of type string"),
        ("search", {"pattern": "("}, "error: "),
        ("search", {"pattern": "nowhere in the code"}, "nothing matches"),
        ("search", ["x"], "must be an object"),
        ("read_file", {"path": "gone.py", "first": 1, "last": 9}, "no such file or folder: gone.py"),
        ("read_file", {"path": "tests", "first": 1, "last": 9}, "is not a file"),
        ("read_file", {"path": "shop.sqlite", "first": 1, "last": 9}, "is not a text file"),
        ("read_file", {"path": "tests/test_stock.py", "first": 900, "last": 910}, "there is no range 900 to 910"),
        ("read_file", {"path": "tests/test_stock.py", "first": True, "last": 9}, "must be of type integer"),
        ("read_file", {"path": "a\0b", "first": 1, "last": 9}, "error: "),
        ("edit_file", {"path": "tests/test_stock.py", "old": "no such text", "new": ""}, "it occurs 0 times"),
        ("edit_file", {"path": "tests/test_stock.py", "old": "def ", "new": ""}, "exactly once"),
        ("edit_file", {"path": "tests/test_stock.py", "old": "", "new": "x"}, "it occurs 0 times"),
        ("run_tests", {"path": "docs/promises.md"}, "is not a test file"),
        ("query", {"sql": "SELEC 1"}, "syntax error"),
        ("query", {"sql": "SELECT 1; SELECT 2"}, "error: "),
        ("query", {"sql": ""}, "only a SELECT"),
        (
            "query",
            {"sql": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT sum(n) FROM t"},
            "inter",
        ),
    ],
)
def test_an_error_is_text_for_the_agent(workspace, tool, arguments, message):
    result = run_tool(workspace, tool, arguments)
    assert result.startswith("error: ") and message in result
    assert str(workspace) not in result


def test_code_that_does_not_run_is_a_failed_test_not_an_exception(workspace):
    (workspace / "tests" / "test_stock.py").write_text("import nothing_of_that_name\n")
    report = run_tool(workspace, "run_tests", {"path": "tests/test_stock.py"})
    assert "ModuleNotFoundError" in report and str(workspace) not in report


@pytest.mark.parametrize(
    "path", ["../secret.txt", "tests/../../secret.txt", "link.txt", "links/secret.txt", "{outside}"]
)
def test_no_path_leaves_the_workspace(workspace, path):
    secret = workspace.parent / "secret.txt"
    secret.write_text("a secret\n")
    (workspace / "link.txt").symlink_to(secret)
    (workspace / "links").symlink_to(workspace.parent, target_is_directory=True)
    path = path.format(outside=secret)
    for tool, arguments in [
        ("read_file", {"path": path, "first": 1, "last": 9}),
        ("edit_file", {"path": path, "old": "a secret", "new": "no secret"}),
        ("list_files", {"folder": path}),
        ("run_tests", {"path": path}),
    ]:
        assert "is outside the workspace" in run_tool(workspace, tool, arguments)
    assert "nothing matches" in run_tool(workspace, "search", {"pattern": "a secret"})
    assert "secret" not in run_tool(workspace, "list_files", {"folder": "."})
    assert secret.read_text() == "a secret\n"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders",
        "CREATE TABLE t (a)",
        "PRAGMA writable_schema = 1",
        "ATTACH '{outside}' AS other",
        "VACUUM INTO '{outside}'",
    ],
)
def test_a_query_can_only_read_and_only_this_database(workspace, sql):
    outside = workspace.parent / "other.sqlite"
    before = (workspace / "shop.sqlite").read_bytes()
    assert run_tool(workspace, "query", {"sql": sql.format(outside=outside)}).startswith("error: ")
    assert not outside.exists()
    assert (workspace / "shop.sqlite").read_bytes() == before
