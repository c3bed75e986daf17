"""Which tool the agent calls next: a script that reads the tools' results and chooses a call, in place of a model.

The script plays a debugging session: the agent sees the tests fail, finds the wrong line, fixes it, looks up the orders
that it affected, and then reviews the rest of the service. The seed decides where the agent starts, in which order it
continues, and how it phrases its queries.
"""

import re
from collections.abc import Generator
from random import Random

from minstate.lab.agent.code_base import CodeBase

MAX_CALLS = 39  # the length of the shortest script


def call(tool: str, **arguments: str | int) -> dict:
    """Return a tool call in the form that chat messages have."""
    return {"name": tool, "arguments": arguments}


def debugging_script(code: CodeBase, random: Random) -> Generator[dict, str, None]:
    """Yield tool calls, and be sent each call's result before the next one."""
    touched = query_touched_orders(code, random)
    start = random.choice(["tests", "database", "folder"])
    if start == "database":
        yield touched
    if start == "folder":
        listing = yield call("list_files", folder=".")

    report = yield call("run_tests")
    test_file, function = first_failure(report)
    if start == "folder":
        path = next(path for path in listed_paths(listing) if path.endswith(test_file.replace("tests/test_", "/")))
        source = yield call("read_file", path=path, first=1, last=random.randrange(36, 46))
    else:
        pattern = random.choice([rf"\b{function}\b", rf"{function}[^_]", rf"(def|import|assert|-).*\b{function}"])
        hits = yield call("search", pattern=pattern)
        path, line = find_definition(function, hits)
        first = max(1, line - random.randrange(13, 20))
        source = yield call("read_file", path=path, first=first, last=line + random.randrange(14, 24))

    yield fix(code, path, wrong_line(code, source))
    if start != "database":
        yield touched
    yield call("run_tests", path=test_file)
    yield from review(code, random, reviewed=path)


def review(code: CodeBase, random: Random, reviewed: str) -> Generator[dict, str, None]:
    """Review the rest in random order: the modules and where they are used, the tests, and each customer's orders."""
    errands = [path for path in code.files if path != reviewed and "__init__" not in path]
    errands += [customer for customer, *_ in code.tables["customers"][1:]]
    for errand in random.sample(errands, len(errands)):
        if isinstance(errand, int):
            columns = random.choice(ORDER_COLUMNS)
            yield call("query", sql=f"SELECT {columns} FROM orders WHERE customer_id = {errand} ORDER BY id")
        else:
            source = yield call("read_file", path=errand, first=1, last=60)
            functions = re.findall(r"^ *\d+  def (\w+)", source, re.MULTILINE)
            if functions:
                yield call("search", pattern=rf"\b{random.choice(functions)}\b")


ORDER_COLUMNS = [
    "id, placed_on, sku, quantity, net",
    "id, sku, quantity, grams, days_late",
    "id, placed_on, net, days_late, returned_after",
]


def query_touched_orders(code: CodeBase, random: Random) -> dict:
    """Return the call that queries the orders that the bug affected, with their customers."""
    columns = random.sample(["c.zone", "o.placed_on", "o.sku", "o.quantity", "o.net", "o.grams"], 4)
    order = random.choice(["o.id", "o.id DESC", "o.net DESC, o.id", "c.name, o.id"])
    sql = (
        f"SELECT o.id, c.name, {', '.join(columns)} FROM orders o JOIN customers c ON c.id = o.customer_id "
        f"WHERE {code.bug.touched} ORDER BY {order} LIMIT {random.randrange(7, 10)}"
    )
    return call("query", sql=sql)


def wrong_line(code: CodeBase, source: str) -> str:
    """Return the wrong line among those read. How it should read is all that a script knows beforehand."""
    return next(line for line in source_lines(source) if code.bug.wrong in line)


def fix(code: CodeBase, path: str, line: str) -> dict:
    """Return the edit that corrects the wrong line."""
    return call("edit_file", path=path, old=line, new=line.replace(code.bug.wrong, code.bug.right))


def first_failure(report: str) -> tuple[str, str]:
    """Return the test file of a test report's first failure, and the function that the failed assertion calls."""
    failure = re.search(r'File "(tests/\w+\.py)", line \d+, in \w+\n\s*self\.assert\w+\(\W*(\w+)\(', report)
    return failure[1], failure[2]


def find_definition(function: str, hits: str) -> tuple[str, int]:
    """Return the file and line that define the function, found among the hits of a search."""
    hit = re.search(rf"^(\S+?):(\d+): def {function}\b", hits, re.MULTILINE)
    return hit[1], int(hit[2])


def listed_paths(listing: str) -> list[str]:
    """Return the paths of a file listing."""
    return [line.split()[0] for line in listing.splitlines()]


def source_lines(source: str) -> list[str]:
    """Return the lines of a `read_file` result without their numbers, as they are in the file."""
    return [re.sub(r"^ *\d+  ", "", line) for line in source.splitlines()[1:]]
