"""Which tool the agent calls next: a script that reads what the tools returned, as an agent would.

The story is a debugging session: see the tests fail, find the code, mend it, look up the orders it touched, then go
over the rest of the service. The seed decides where it starts, in which order it goes on, and how it asks.
"""

import re
from collections.abc import Generator
from random import Random

from minstate.lab.agent.code_base import CodeBase

MAX_CALLS = 39  # what the shortest script holds


def call(tool: str, **arguments: str | int) -> dict:
    """Return a tool call as chat messages carry it."""
    return {"name": tool, "arguments": arguments}


def debugging_script(code: CodeBase, random: Random) -> Generator[dict, str, None]:
    """Yield tool calls; each call's result is to be sent back in before the next one is drawn."""
    touched = query_touched_orders(code, random)
    start = random.choice(["tests", "database", "folder"])
    if start == "database":
        yield touched
    if start == "folder":
        listing = yield call("list_files", folder=".")

    report = yield call("run_tests")
    test_file, function = what_failed(report)
    if start == "folder":
        path = next(path for path in paths_in(listing) if path.endswith(test_file.replace("tests/test_", "/")))
        source = yield call("read_file", path=path, first=1, last=random.randrange(36, 46))
    else:
        pattern = random.choice([rf"\b{function}\b", rf"{function}[^_]", rf"(def|import|assert|-).*\b{function}"])
        hits = yield call("search", pattern=pattern)
        path, line = where_defined(function, hits)
        first = max(1, line - random.randrange(13, 20))
        source = yield call("read_file", path=path, first=first, last=line + random.randrange(14, 24))

    # What is wrong with the line is the one thing that the script knows beforehand.
    wrong = next(text for text in texts_in(source) if code.bug.wrong in text)
    yield call("edit_file", path=path, old=wrong, new=wrong.replace(code.bug.wrong, code.bug.right))

    if start != "database":
        yield touched
    yield call("run_tests", path=test_file)
    yield from review(code, random, reviewed=path)


def review(code: CodeBase, random: Random, reviewed: str) -> Generator[dict, str, None]:
    """Go over the rest, in an order drawn by lot: modules and who uses them, tests, each customer's orders."""
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
    """Return the query for the orders that the bug touched, and whose they are."""
    columns = random.sample(["c.zone", "o.placed_on", "o.sku", "o.quantity", "o.net", "o.grams"], 4)
    order = random.choice(["o.id", "o.id DESC", "o.net DESC, o.id", "c.name, o.id"])
    sql = (
        f"SELECT o.id, c.name, {', '.join(columns)} FROM orders o JOIN customers c ON c.id = o.customer_id "
        f"WHERE {code.bug.touched} ORDER BY {order} LIMIT {random.randrange(7, 10)}"
    )
    return call("query", sql=sql)


def what_failed(report: str) -> tuple[str, str]:
    """Return the test file of the first failure in a test report, and the function that its assertion calls."""
    failure = re.search(r'File "(tests/\w+\.py)", line \d+, in \w+\n\s*self\.assert\w+\(\W*(\w+)\(', report)
    return failure[1], failure[2]


def where_defined(function: str, hits: str) -> tuple[str, int]:
    """Return the file and line of a function's definition among search hits."""
    hit = re.search(rf"^(\S+?):(\d+): def {function}\b", hits, re.MULTILINE)
    return hit[1], int(hit[2])


def paths_in(listing: str) -> list[str]:
    """Return the paths of a file listing."""
    return [line.split()[0] for line in listing.splitlines()]


def texts_in(source: str) -> list[str]:
    """Return the lines that `read_file` numbered, as they stand in the file."""
    return [re.sub(r"^ *\d+  ", "", line) for line in source.splitlines()[1:]]
