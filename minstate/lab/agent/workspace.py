"""The agent's tools, which really run in a folder: list, search, read, edit, test, query.

A tool takes the workspace's root folder and the agent's arguments, and returns text for the agent. `run_tool` turns
every error into text as well, because an agent should read about its mistakes and not crash. Results hold nothing that
changes from run to run (times, temporary paths), so a conversation can be replayed byte for byte.

Paths are confined to the folder, but code is not: `run_tests` executes the files with the rights of your user.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from minstate.lab.paths import DATA

DATABASE = "shop.sqlite"
MAX_LINES = 60
MAX_ROWS = 12
JSON_TYPES = {"string": str, "integer": int}


def load_schemas() -> list[dict]:
    """Return the tools' JSON schemas, in the style of OpenAI's function calling."""
    return json.loads((DATA / "tools.json").read_text(encoding="utf-8"))


def write_workspace(folder: Path, files: dict[str, str], tables: dict[str, list[tuple]]) -> None:
    """Write text files, and a database. Each table is a row of column names, then the rows of values."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        for name, (columns, *rows) in tables.items():
            database.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
            database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)


class ToolError(Exception):
    """The agent asked for something that a tool cannot do. The message is for the agent."""


def run_tool(root: Path, name: str, arguments: dict) -> str:
    """Run one tool in the workspace and return its result, or a line that starts with "error:"."""
    root = root.resolve()
    try:
        check_arguments(name, arguments)
        return TOOLS[name](root, **arguments)
    except Exception as error:  # noqa: BLE001  a model may call anything, and every call gets a result
        return f"error: {error}".replace(f"{root}{os.sep}", "")


def check_arguments(name: str, arguments: dict) -> None:
    """Raise ToolError unless the arguments fit the tool's schema."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in load_schemas()}
    if name not in schemas:
        raise ToolError(f"no tool is called {name!r}; there are {', '.join(schemas)}")
    if not isinstance(arguments, dict):
        raise ToolError(f"the arguments of {name} must be an object")
    properties = schemas[name]["properties"]
    for argument in schemas[name]["required"]:
        if argument not in arguments:
            raise ToolError(f"{name} needs the argument {argument!r}")
    for argument, value in arguments.items():
        if argument not in properties:
            raise ToolError(f"{name} has no argument {argument!r}; it takes {', '.join(properties)}")
        wanted = properties[argument]["type"]
        if type(value) is not JSON_TYPES[wanted]:
            raise ToolError(f"the argument {argument!r} of {name} must be of type {wanted}")


def inside(root: Path, path: str) -> Path:
    """Return the real path of an existing file or folder of the workspace, or raise ToolError."""
    real = (root / path).resolve()  # follows `..` and links, as opening the file would
    if not real.is_relative_to(root):
        raise ToolError(f"{path} is outside the workspace")
    if not real.exists():
        raise ToolError(f"no such file or folder: {path}")
    return real


def read_text(root: Path, path: str) -> str:
    """Return the text of a file of the workspace, or raise ToolError."""
    file = inside(root, path)
    if not file.is_file():
        raise ToolError(f"{path} is not a file")
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ToolError(f"{path} is not a text file") from None


def all_files(root: Path, below: Path) -> list[str]:
    """Return the files below a folder, sorted, without links that lead out of the workspace."""
    found = [path for path in below.rglob("*") if path.is_file() and path.resolve().is_relative_to(root)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def numbered(lines: list[str], first: int, last: int) -> str:
    """Return lines `first` to `last` (counted from 1, both included), each with its number in front."""
    return "\n".join(f"{n:3d}  {lines[n - 1]}".rstrip() for n in range(max(1, first), min(last, len(lines)) + 1))


def list_files(root: Path, folder: str) -> str:
    """List a folder's files with their numbers of lines and bytes."""
    listing = []
    for path in all_files(root, inside(root, folder)):
        if path == DATABASE:
            listing.append(f"{path}  SQLite")  # its size depends on SQLite's version
        else:
            text = read_text(root, path)
            listing.append(f"{path}  {len(text.splitlines())} lines, {len(text.encode())} bytes")
    return "\n".join(listing) or f"{folder} holds no files"


def search(root: Path, pattern: str) -> str:
    """Return the lines of the text files that match a regular expression, as `path:line: text`."""
    expression = re.compile(pattern)
    hits = []
    for path in all_files(root, root):
        if path != DATABASE:
            lines = read_text(root, path).splitlines()
            hits += [f"{path}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if expression.search(line)]
    if not hits:
        raise ToolError(f"nothing matches {pattern}")
    return shortened(hits, MAX_LINES, "hits")


def shortened(lines: list[str], limit: int, what: str) -> str:
    """Join at most `limit` lines, and add the number of lines that are left out."""
    more = [f"... and {len(lines) - limit} more {what}"] if len(lines) > limit else []
    return "\n".join(lines[:limit] + more)


def read_file(root: Path, path: str, first: int, last: int) -> str:
    """Return a range of at most 60 numbered lines, under a heading with the path and the range."""
    lines = read_text(root, path).splitlines()
    start = max(1, first)
    end = min(last, len(lines), start + MAX_LINES - 1)
    if start > end:
        raise ToolError(f"{path} has {len(lines)} lines; there is no range {first} to {last}")
    return f"{path}, lines {start} to {end} of {len(lines)}\n{numbered(lines, start, end)}"


def edit_file(root: Path, path: str, old: str, new: str) -> str:
    """Replace the only occurrence of `old`, and return the lines around the change."""
    text = read_text(root, path)
    times = text.count(old) if old else 0
    if times != 1:
        raise ToolError(f"the old text must occur exactly once in {path}; it occurs {times} times")
    inside(root, path).write_bytes(text.replace(old, new).encode("utf-8"))
    start = text[: text.index(old)].count("\n") + 1
    lines = text.replace(old, new).splitlines()
    return f"edited {path}, which now reads\n{numbered(lines, start - 8, start + new.count(chr(10)) + 8)}"


def run_tests(root: Path, path: str | None = None) -> str:
    """Run all unit tests and show the failures, or run one file's tests and name each of them."""
    which = []
    if path is not None:
        file = inside(root, path)
        if file.parent != root / "tests":
            raise ToolError(f"{path} is not a test file")
        which = ["-v", "-p", file.name]
    # -I: the user's PYTHON* variables do not change the output. -B: no bytecode from before an edit is used.
    command = [sys.executable, "-I", "-B", "-m", "unittest", "discover", "-t", ".", "-s", "tests", *which]
    environment = os.environ | {"NO_COLOR": "1"}
    try:
        run = subprocess.run(
            command,
            check=False,  # failing tests end with an exit status of 1
            cwd=root,
            env=environment,
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise ToolError("the tests ran for more than 60 seconds and were stopped") from None
    output = run.stdout.replace(f"{root}{os.sep}", "")
    output = re.sub(r"^(Ran \d+ tests?) in .*$", r"\1", output, flags=re.MULTILINE)
    # Each Python version draws the markers under a traceback's line differently.
    return "\n".join(line for line in output.splitlines() if not re.fullmatch(r"\s*[~^]+\s*", line)).strip()


def query(root: Path, sql: str) -> str:
    """Return the rows of one SELECT as a table, at most 12 of them."""
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    with closing(sqlite3.connect(f"{(root / DATABASE).as_uri()}?mode=ro", uri=True)) as database:
        # Opening it read-only protects this file alone. ATTACH could open others, so only reading is authorised.
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY)
        database.set_progress_handler(lambda: 1, 10_000_000)  # a limit in SQLite's VM steps: no clock
        cursor = database.execute(sql)
        if cursor.description is None:
            raise ToolError("only a SELECT can be run")
        heading = [name for name, *_ in cursor.description]
        rows = cursor.fetchmany(MAX_ROWS + 1)
    table = [heading, *rows[:MAX_ROWS]]
    lines = [" | ".join("NULL" if value is None else str(value) for value in row) for row in table]
    if len(rows) > MAX_ROWS:
        lines.append("... and more rows")
    return "\n".join(lines if rows else [*lines, "no rows"])


TOOLS = {
    "list_files": list_files,
    "search": search,
    "read_file": read_file,
    "edit_file": edit_file,
    "run_tests": run_tests,
    "query": query,
}
