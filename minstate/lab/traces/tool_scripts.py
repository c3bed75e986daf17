"""Which tool an agent of a trace calls next: scripts that read results and choose a call, in place of a model.

A script yields a tool call and is sent the call's result. As in `minstate.lab.agent.script`, all that it knows
beforehand is how the one wrong line of the code should read.
"""

import re
from collections.abc import Generator
from random import Random

from minstate.lab.agent.code_base import CodeBase
from minstate.lab.agent.script import call, find_definition, first_failure, fix, listed_paths, source_lines, wrong_line

ToolScript = Generator[dict, str, object]

# Functions of each module, by their keys in the templates, whose only argument must not be negative.
GUARDED = {
    "pricing": ["bulk", "tax"],
    "shipping": ["parcels"],
    "stock": ["reorder", "lots"],
    "loyalty": ["points", "grade"],
    "invoices": ["late_fee"],
    "returns": ["days_left"],
}
REFUSALS = [
    "raise ValueError({argument})",
    'raise ValueError("negative {argument}")',
    'raise ValueError("{argument} below 0")',
]
TEST_NAMES = ["refuses_negatives", "of_less_than_nothing", "below_zero"]


def add_guards(code: CodeBase, random: Random) -> ToolScript:
    """34 calls: fix the bug, guard three functions (for two of them, the test comes first), look at constants."""
    listing = yield call("list_files", folder=code.names["package"])
    report = yield call("run_tests")
    test_file, function = first_failure(report)
    path, line = find_definition(function, (yield call("search", pattern=rf"\b{function}\b")))
    source = yield call("read_file", path=path, first=line - random.randrange(1, 4), last=line + random.randrange(5, 8))
    yield fix(code, path, wrong_line(code, source))
    yield call("run_tests", path=test_file)

    modules = random.sample([path for path in listed_paths(listing) if module_of(path) in GUARDED], 6)
    refusal, tests_first = random.choice(REFUSALS), random.sample([True, True, False], 3)
    for path, test_first in zip(modules[:3], tests_first, strict=True):
        name = code.names[random.choice(GUARDED[module_of(path)])]
        _, line = find_definition(name, (yield call("search", pattern=rf"\b{name}\(")))
        first, last = line - random.randrange(2), line + random.randrange(3, 6)
        test_file = f"tests/test_{module_of(path)}.py"
        if test_first:
            yield from add_test(test_file, name, random)
            yield call("run_tests")
        source = yield call("read_file", path=path, first=first, last=last)
        yield guard(path, name, source, refusal)
        if not test_first:
            yield from add_test(test_file, name, random)
        yield call("run_tests")
    for path in modules[3:]:
        source = yield call("read_file", path=path, first=1, last=random.randrange(8, 10))
        constants = re.findall(r"^ *\d+  ([A-Z_]+) = ", source, re.MULTILINE)
        yield call("search", pattern=rf"\b{random.choice(constants)}\b")
    yield call("search", pattern=random.choice(["raise ValueError", r"assertRaises\(ValueError", "ValueError"]))
    yield call("run_tests")


def module_of(path: str) -> str:
    """The name of the module in a file."""
    return path.rpartition("/")[2].removesuffix(".py")


def guard(path: str, name: str, source: str, refusal: str) -> dict:
    """The edit that makes a function refuse a negative argument: two lines at the beginning of its body."""
    read = source_lines(source)
    start = next(n for n, line in enumerate(read) if line.startswith(f"def {name}("))
    argument = read[start].partition("(")[2].partition(")")[0]
    body = read[start + 2]  # the first line after the docstring, which has one line
    lines = [f"    if {argument} < 0:", f"        {refusal.format(argument=argument)}", body]
    return call("edit_file", path=path, old=body, new="\n".join(lines))


def add_test(test_file: str, name: str, random: Random) -> ToolScript:
    """2 calls: read the beginning of a test file, and add a test to its class."""
    source = yield call("read_file", path=test_file, first=random.randrange(3, 6), last=random.randrange(8, 11))
    heading = next(line for line in source_lines(source) if line.startswith("class "))
    lines = [
        heading,
        f"    def test_{name}_{random.choice(TEST_NAMES)}(self):",
        f"        self.assertRaises(ValueError, {name}, -{random.randrange(1, 40)})\n",
    ]
    yield call("edit_file", path=test_file, old=heading, new="\n".join(lines))


def explore_sales() -> ToolScript:
    """7 calls: the tables, then the season by month, article, zone and customer."""
    yield call("query", sql="SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    yield call("query", sql="SELECT count(*), min(placed_on), max(placed_on), sum(net), avg(net) FROM orders")
    months = yield call(
        "query",
        sql="SELECT substr(placed_on, 1, 7) AS month, count(*) AS orders, sum(net) AS total FROM orders "
        "GROUP BY month ORDER BY total DESC",
    )
    best = cells(months)[0][0]
    articles = yield call(
        "query",
        sql=f"SELECT sku, sum(quantity) AS pieces, sum(net) AS total FROM orders WHERE placed_on LIKE '{best}%' "
        "GROUP BY sku ORDER BY total DESC",
    )
    (sku, *_), (second, *_), *_ = cells(articles)
    yield call("search", pattern=f'"({sku}|{second})"')
    zones = yield call(
        "query",
        sql="SELECT c.zone, count(*) AS orders, sum(o.net) AS total FROM orders o "
        "JOIN customers c ON c.id = o.customer_id GROUP BY c.zone ORDER BY total DESC",
    )
    yield call(
        "query",
        sql="SELECT c.id, c.name, count(*) AS orders, sum(o.net) AS total FROM orders o JOIN customers c "
        f"ON c.id = o.customer_id WHERE c.zone = '{cells(zones)[0][0]}' GROUP BY c.id ORDER BY total DESC LIMIT 5",
    )


def look_at_payers(code: CodeBase) -> ToolScript:
    """3 calls: customers who pay late, the rule for late payment, and returns by article."""
    yield call(
        "query",
        sql="SELECT c.name, count(*) AS late, max(o.days_late) AS days FROM orders o JOIN customers c "
        "ON c.id = o.customer_id WHERE o.days_late > 0 GROUP BY c.id ORDER BY late DESC, days DESC LIMIT 8",
    )
    yield call("read_file", path=f"{code.names['package']}/invoices.py", first=1, last=14)
    yield call(
        "query",
        sql="SELECT sku, count(returned_after) AS came_back, count(*) AS orders, sum(net) AS total FROM orders "
        "GROUP BY sku ORDER BY came_back DESC, sku",
    )


def find_bug(code: CodeBase, random: Random) -> ToolScript:
    """3 calls and a report: the line that makes the tests fail."""
    test_file, function = first_failure((yield call("run_tests")))
    path, line = find_definition(function, (yield call("search", pattern=rf"\b{function}\b")))
    source = yield call("read_file", path=path, first=line - random.randrange(2, 6), last=line + random.randrange(5, 9))
    wrong = wrong_line(code, source)
    number = re.search(rf"^ *(\d+)  {re.escape(wrong)}$", source, re.MULTILINE)[1]
    yield call("report", finding=f"{path}, line {number}: `{wrong.strip()}` is what {test_file} stumbles over.")


def survey_orders() -> ToolScript:
    """3 calls and a report: zones, the best customers, and returned orders."""
    zones = yield call(
        "query",
        sql="SELECT zone, count(*) AS orders, sum(net) AS total FROM orders JOIN customers "
        "ON customers.id = customer_id GROUP BY zone ORDER BY total DESC",
    )
    best = yield call(
        "query",
        sql="SELECT name, sum(net) AS total FROM orders JOIN customers ON customers.id = customer_id "
        "GROUP BY name ORDER BY total DESC LIMIT 4",
    )
    returned = yield call("query", sql="SELECT count(*), sum(net) FROM orders WHERE returned_after IS NOT NULL")
    (zone, orders, total), *_ = cells(zones)
    ((number, worth),) = cells(returned)
    finding = (
        f"The zone {zone} leads with {orders} orders for {total} cents; {cells(best)[0][0]} is the best customer with "
        f"{cells(best)[0][1]} cents. {number} orders came back, worth {worth} cents."
    )
    yield call("report", finding=finding)


def check_promises() -> ToolScript:
    """2 calls and a report: whether the code has the numbers that the shop promises its customers."""
    promises = yield call("read_file", path="docs/promises.md", first=5, last=12)
    constants = yield call("search", pattern=r"^[A-Z_]+ = (\d|\{)")
    promised = {number for line in source_lines(promises) for number in re.findall(r"\d+", line)}
    kept = promised & set(re.findall(r"\d+", "\n".join(line.partition(" = ")[2] for line in constants.splitlines())))
    missing = sorted(promised - kept, key=int)
    rest = f"; {', '.join(missing)} I did not find" if missing else ""
    yield call("report", finding=f"{len(kept)} of the {len(promised)} promised numbers stand in the code{rest}.")


def cells(table: str) -> list[list[str]]:
    """The cells of a query's result, row by row, without the heading."""
    return [line.split(" | ") for line in table.splitlines()[1:] if " | " in line]
