"""Scenarios for traces: the requests to agents, and the tools that they call. The text of their outputs is left open.

A seed decides all of a scenario, including the code base and the database. The tools really run, in a temporary folder.
A script (`minstate.lab.traces.tool_scripts`) reads the tools' results and chooses the next call, in place of a model.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from random import Random

from minstate.lab.agent.code_base import WORDS, CodeBase, write_code_base
from minstate.lab.agent.script import call, fix, query_touched_orders
from minstate.lab.agent.workload import MODULES, AgenticWorkload
from minstate.lab.agent.workspace import DATABASE, load_schemas, run_tool, write_workspace
from minstate.lab.traces.tool_scripts import (
    ToolScript,
    add_guards,
    check_promises,
    explore_sales,
    find_bug,
    look_at_payers,
    survey_orders,
)
from minstate.lab.traces.trace import Fork, Opening

# The least and the most seconds that tools and people take. Delays are drawn uniformly; none was measured.
DELAYS = {
    "list_files": (0.02, 0.2),
    "search": (0.05, 0.5),
    "read_file": (0.02, 0.2),
    "edit_file": (0.02, 0.2),
    "run_tests": (1.0, 6.0),
    "query": (0.05, 0.8),
    "delegate": (0.05, 0.2),  # in addition to the sub-agents' own time
    "user": (10.0, 90.0),
}


@dataclass(frozen=True)
class PlannedTurn:
    """A turn without the text of its output."""

    session: str
    messages: tuple[dict, ...]
    calls: tuple[dict, ...]
    tokens: int  # of the output, its text and calls together
    delay_s: float
    fork_of: Fork | None = None
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A trace without the text of its outputs."""

    about: str
    sessions: dict[str, Opening]
    turns: tuple[PlannedTurn, ...]


@dataclass(frozen=True)
class Workplace:
    """Where a scenario plays: a code base in a folder, three people, and a source of random numbers."""

    folder: Path
    code: CodeBase
    people: tuple[str, str, str]  # boss, clerk, agent
    random: Random

    def draw_delay(self, cause: str) -> float:
        """Seconds until a tool or a person, one of `DELAYS`, has answered."""
        return round(self.random.uniform(*DELAYS[cause]), 3)


def in_workplace(write: Callable[[Workplace], Scenario], seed: int) -> Scenario:
    """The scenario that `write` makes of a new workplace, whose folder is removed afterwards."""
    name = write.__name__
    random = Random(f"{name} {seed}")
    code = write_code_base(Random(f"{name}, code base {seed}"))
    with tempfile.TemporaryDirectory(prefix="minstate-") as folder:
        write_workspace(Path(folder), code.files, code.tables)
        return write(Workplace(Path(folder), code, tuple(random.sample(WORDS["people"], 3)), random))


def converse(
    workplace: Workplace,
    session: str,
    request: str,
    script: ToolScript,
    *,
    tokens: int,
    report_tokens: int = 0,
    delay_s: float | None = None,
) -> Iterator[PlannedTurn]:
    """Yield a turn for each of the script's tool calls, and a last turn without a call, which reports to the user.

    tokens         of an output that calls a tool
    report_tokens  of the last output
    delay_s        before the request; None draws the delay of a user
    """
    message, result = {"role": "user", "content": request}, None
    delay_s = workplace.draw_delay("user") if delay_s is None else delay_s
    while True:
        try:
            tool_call = script.send(result)
        except StopIteration:
            yield PlannedTurn(session, (message,), (), report_tokens, delay_s)
            return
        yield PlannedTurn(session, (message,), (tool_call,), tokens, delay_s)
        message, delay_s = run_call(workplace, tool_call), workplace.draw_delay(tool_call["name"])
        result = message["content"]


def run_call(workplace: Workplace, tool_call: dict) -> dict:
    """The message with the result of a tool call."""
    name = tool_call["name"]
    return tool_result(name, run_tool(workplace.folder, name, tool_call["arguments"]))


def tool_result(name: str, content: str) -> dict:
    """The message in which a tool returns `content`."""
    return {"role": "tool", "name": name, "content": content}


def briefing(workplace: Workplace, duty: str) -> dict:
    """The system message: the agent's name and duty, the workspace, and how to work."""
    boss, clerk, agent = workplace.people
    names = workplace.code.names
    modules = workplace.random.sample(list(MODULES.items()), len(MODULES))
    lines = [
        f"You are {agent}, {duty} of {names['shop']}, {names['trade']} in {workplace.random.choice(WORDS['towns'])}. "
        f"{boss} runs the shop, {clerk} keeps its books. The workspace holds the order service, {names['package']}:",
        *(f"- {names['package']}/{name}.py: {what}" for name, what in modules),
        "- tests: one file of unittest cases for each module",
        "- docs/promises.md: what the shop promises its customers",
        "",
        "Say in a sentence what you know by now or what you want to find out, call one tool, and go on from there.",
    ]
    return {"role": "system", "content": "\n".join(lines)}


def agentic(seed: int) -> Scenario:
    """6 turns: a complaint, the tests, the code, a fix, the affected orders, a report."""
    with AgenticWorkload(seed, turns=6) as workload:
        turns = list(workload)
        random = Random(f"agentic {seed}")
        planned, cause = [], "user"
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            calls = tuple(following[0]["tool_calls"]) if following else ()
            delay_s = round(random.uniform(*DELAYS[cause]), 3)
            planned.append(PlannedTurn("main", (turn[-1],), calls, 80, delay_s))
            cause = calls[0]["name"] if calls else ""
        opening = Opening(tuple(workload.opening), tuple(workload.tools))
    about = "An agent mends a bug of an order service and looks up what it touched."
    return Scenario(about, {"main": opening}, tuple(planned))


def coding(workplace: Workplace) -> Scenario:
    """35 turns: the agent fixes a bug, then makes functions refuse negative numbers, each with a test."""
    boss, clerk, agent = workplace.people
    request = (
        f"{agent}, {boss} here. {clerk} says that {workplace.code.bug.complaint}. Please mend that first. Then see to "
        "it that our functions refuse negative numbers with a ValueError; three of the riskiest, a test for each."
    )
    script = add_guards(workplace.code, workplace.random)
    turns = converse(workplace, "main", request, script, tokens=48, report_tokens=48)
    tools = tuple(tool for tool in load_schemas() if tool["function"]["name"] != "query")
    opening = Opening((briefing(workplace, "the programmer"),), tools)
    about = "An agent mends a bug of an order service, then guards functions against negative numbers, with tests."
    return Scenario(about, {"main": opening}, tuple(turns))


def data_analysis(workplace: Workplace) -> Scenario:
    """12 turns: a season's sales in SQL, a report, a question about it, more SQL, and a second report."""
    boss, clerk, agent = workplace.people
    request = (
        f"{agent}, {boss} here. How did the season go? I'd like to know what sold, where it went, and who our best "
        f"customers were. The numbers are in {DATABASE}; amounts are net, in cents."
    )
    question = f"Thank you. {clerk} asks who paid late, what our rule for that is, and how much came back."
    turns = [
        *converse(workplace, "main", request, explore_sales(), tokens=96, report_tokens=80),
        *converse(workplace, "main", question, look_at_payers(workplace.code), tokens=96, report_tokens=80),
    ]
    opening = Opening((briefing(workplace, "the analyst"),), tuple(load_schemas()))
    about = "An agent answers two questions about a shop's season with SQL."
    return Scenario(about, {"main": opening}, tuple(turns))


DELEGATE = {
    "type": "function",
    "function": {
        "name": "delegate",
        "description": "Give a task to a sub-agent. It starts with everything said so far, and reports once.",
        "parameters": {
            "type": "object",
            "properties": {"agent": {"type": "string"}, "task": {"type": "string"}},
            "required": ["agent", "task"],
        },
    },
}
REPORT = {
    "type": "function",
    "function": {
        "name": "report",
        "description": "End a sub-agent's task and hand what it found to the agent that gave it.",
        "parameters": {"type": "object", "properties": {"finding": {"type": "string"}}, "required": ["finding"]},
    },
}


def planning(workplace: Workplace) -> Scenario:
    """17 turns: an orchestrator delegates to three sub-agents, which are forked from it, and acts on their reports."""
    code, (boss, clerk, agent) = workplace.code, workplace.people
    request = (
        f"{agent}, {boss} here. Before the new season I want three things looked at: why the test run is red, how the "
        f"orders went, and whether the code keeps our promises. {clerk} also says that {code.bug.complaint}. Let "
        "sub-agents look at them side by side, then mend what has to be mended and tell me."
    )
    errands = {
        "tests": ("Find the line that makes the tests fail. Change nothing.", find_bug(code, workplace.random)),
        "orders": ("Survey the season's orders: zones, the best customer, returns.", survey_orders()),
        "promises": ("Compare the numbers in docs/promises.md with those in the code.", check_promises()),
    }
    delegations = tuple(call("delegate", agent=name, task=task) for name, (task, _) in errands.items())

    def main(messages: list[dict], calls: tuple[dict, ...], cause: str, **more) -> PlannedTurn:
        return PlannedTurn("main", tuple(messages), calls, 64, workplace.draw_delay(cause), **more)

    look = call("list_files", folder=code.names["package"])
    turns = [main([{"role": "user", "content": request}], (look,), "user")]
    turns.append(main([run_call(workplace, look)], delegations, look["name"]))
    fork = Fork("main", after_turn=2)
    branches = [run_errand(workplace, fork, name, task, script) for name, (task, script) in errands.items()]
    turns += [turn for same_time in zip_longest(*branches) for turn in same_time if turn]
    findings = [branch[-1].calls[0]["arguments"]["finding"] for branch in branches]

    messages = [tool_result("delegate", finding) for finding in findings]
    path, wrong = re.match(r"(\S+), line \d+: `(.*)`", findings[0]).groups()
    before = fix(code, path, wrong)
    turns.append(main(messages, (before,), "delegate", waits_for=tuple(errands)))
    for then in (call("run_tests"), query_touched_orders(code, workplace.random)):
        turns.append(main([run_call(workplace, before)], (then,), before["name"]))
        before = then
    turns.append(main([run_call(workplace, before)], (), before["name"]))
    opening = Opening((briefing(workplace, "the planner"),), (*load_schemas(), DELEGATE, REPORT))
    about = "An orchestrator gives errands to three sub-agents forked from it, and acts on their reports."
    return Scenario(about, {"main": opening}, tuple(turns))


def run_errand(workplace: Workplace, fork: Fork, name: str, task: str, script: ToolScript) -> list[PlannedTurn]:
    """A sub-agent's turns, from its task to its call of `report`, which ends them."""
    request, turns = f"You are the sub-agent {name} now. {task}", []
    for turn in converse(workplace, name, request, script, tokens=64, delay_s=0.0):
        turns.append(turn)
        if turn.calls[0]["name"] == "report":
            break
    return [replace(turns[0], fork_of=fork), *turns[1:]]


SCENARIOS: dict[str, Callable[[int], Scenario]] = {
    "agentic": agentic,
    "coding": partial(in_workplace, coding),
    "data_analysis": partial(in_workplace, data_analysis),
    "planning": partial(in_workplace, planning),
}
