"""A tool-calling agent at work: the conversation that the measurements run on.

The conversation grows turn by turn, and tools really run between the turns: they search, read, edit and test a small
code base, and query a database, all of it written from a seed into a temporary folder. No turn repeats another, and
no two seeds share a turn, so nothing that a cache finds again was put there to be found.

Which tool is called is scripted; what the assistant says besides comes from the model that is measured.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from minstate.lab.agent.code_base import WORDS, write_code_base
from minstate.lab.agent.script import MAX_CALLS, debugging_script
from minstate.lab.agent.workspace import DATABASE, load_schemas, run_tool, write_workspace

MODULES = {
    "catalog": "the articles, with price and weight",
    "pricing": "order lines, their discount, and the tax",
    "shipping": "parcels and freight",
    "stock": "shelves, and when to reorder",
    "loyalty": "points, grades and vouchers",
    "invoices": "the sum of it all, and fees for late payment",
    "returns": "what is paid out for goods that come back",
}
RULES = [
    "Look before you change: read the lines around a place before you edit it.",
    "Change as little as possible, and never a test, unless {boss} asked for it.",
    "Amounts are whole cents. Bring in no floating-point numbers.",
    "When you have edited something, say in one sentence why the old line was wrong.",
    "Name files and lines, and quote order numbers as they stand in the database.",
    "If a tool returns an error, say so and try something else; don't guess its result.",
    "The database is yours to read, not to write. Customers' addresses don't belong in a report.",
    "Reports go to {boss}, who knows the shop well and Python a little: be brief and plain.",
    "A discount or a fee that was wrong for more than {many} orders is to be marked as urgent.",
    "Orders above {amount} cents are checked by {clerk} by hand; mention them apart.",
]
REQUESTS = [
    "Please find the cause, mend it, and tell me which orders it touched.",
    "Could you look into it, put it right, and list the orders concerned?",
    "I need to know why, I need it fixed today, and I need the orders that came out wrong.",
]


class AgenticWorkload:
    """A seeded tool-calling workflow of some turns; use it in a `with` statement.

    `opening` holds the system message and `tools` the schemas. Iterating gives, for each turn, the messages that are
    new in it: first the user's task, then a tool call with its result. A tool runs when its turn is asked for. Every
    iteration starts over, in a fresh copy of the workspace, and gives the same bytes.

    Raises ValueError if `turns` is not between 1 and 40, RuntimeError if it is iterated outside of `with`.
    """

    def __init__(self, seed: int = 0, turns: int = 6):
        if not 1 <= turns <= 1 + MAX_CALLS:
            raise ValueError(f"turns must be between 1 and {1 + MAX_CALLS}, not {turns}")
        self.seed = seed
        self.turns = turns
        self.code = write_code_base(Random(f"code base {seed}"))
        self.tools = load_schemas()
        random = Random(f"messages {seed}")
        people = random.sample(WORDS["people"], 3)
        self.opening = [{"role": "system", "content": write_briefing(self.code.names, people, random)}]
        self.task = {"role": "user", "content": write_task(self.code.bug.complaint, people, random)}
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "AgenticWorkload":
        self._folder = tempfile.TemporaryDirectory(prefix="minstate-")
        return self

    def __exit__(self, *_) -> None:
        self._folder.cleanup()
        self._folder = None

    @property
    def folder(self) -> Path:
        """The temporary folder, with one workspace for each iteration; raises RuntimeError outside of `with`."""
        if self._folder is None:
            raise RuntimeError("the workload is closed: iterate inside `with AgenticWorkload(...) as workload:`")
        return Path(self._folder.name)

    def __iter__(self) -> Iterator[list[dict]]:
        workspace = Path(tempfile.mkdtemp(dir=self.folder))
        write_workspace(workspace, self.code.files, self.code.tables)
        yield [self.task]
        calls = debugging_script(self.code, Random(f"script {self.seed}"))
        result = None
        for _ in range(self.turns - 1):
            call = calls.send(result)
            # Asked for anew at every turn: once the workload is closed, that raises.
            result = run_tool(self.folder / workspace.name, call["name"], call["arguments"])
            yield [
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "name": call["name"], "content": result},
            ]


def write_briefing(names: dict, people: list[str], random: Random) -> str:
    """Return the system message: the agent's job, its workspace, and the rules of the house."""
    boss, clerk, agent = people
    shop, package = names["shop"], names["package"]
    many, amount = random.randrange(5, 30), random.randrange(20000, 60000, 500)
    rules = [rule.format(boss=boss, clerk=clerk, many=many, amount=amount) for rule in random.sample(RULES, 8)]
    modules = [f"- {package}/{name}.py: {what}" for name, what in random.sample(list(MODULES.items()), len(MODULES))]
    lines = [
        f"You are {agent}, the maintenance agent of {shop}, {names['trade']} in {random.choice(WORDS['towns'])}. "
        f"You look after {package}, the Python service that prices, ships and invoices the shop's orders. "
        f"{boss} runs the shop and {clerk} keeps its books; both rely on the service being right to the cent.",
        "",
        "Your workspace holds the code, its tests and last season's data:",
        *modules,
        "- docs/promises.md: what the shop promises its customers, and where the code keeps it",
        "- tests: one file of unittest cases for each module",
        f"- {DATABASE}: customers(id, name, zone), orders(id, customer_id, placed_on, sku, quantity, net, grams, "
        "days_late, returned_after), stock(sku, on_hand); net is in cents",
        "",
        "Work in small steps. Say in a sentence or two what you know by now and what you want to find out, then call "
        "one tool, read what it returns, and go on from there. When the work is done, write a short report: the "
        "cause, the change, the orders concerned.",
        "",
        "Rules of the house:",
        *(f"{n}. {rule}" for n, rule in enumerate(rules, 1)),
    ]
    return "\n".join(lines)


def write_task(complaint: str, people: list[str], random: Random) -> str:
    """Return the user's message: a complaint, and what is to be done about it."""
    boss, clerk, agent = people
    ticket = random.randrange(1000, 9999)
    return (
        f"{agent}, this is {boss}, about ticket {ticket}. {clerk} noticed that {complaint}. The nightly test run has "
        f"been red since the last change, too, so the two may have the same cause. {random.choice(REQUESTS)}"
    )
