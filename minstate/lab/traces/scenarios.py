"""What agents in traces do: whom they hear from, which tools they call, in which order. What they say is left open.

Every script is drawn from a seed, as is the code base and database it works on, and its tools really run, in a
temporary folder. A policy reads what the tools returned and decides what to call next, as an agent would.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from random import Random

from minstate.lab.agent.code_base import WORDS, CodeBase, write_code_base
from minstate.lab.agent.script import call, query_touched_orders
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

# Seconds that tools and people take, at least and at most: drawn evenly, not measured.
DELAYS = {
    "list_files": (0.02, 0.2),
    "search": (0.05, 0.5),
    "read_file": (0.02, 0.2),
    "edit_file": (0.02, 0.2),
    "run_tests": (1.0, 6.0),
    "query": (0.05, 0.8),
    "delegate": (0.05, 0.2),  # besides what the other agents take themselves
    "user": (10.0, 90.0),
}


@dataclass(frozen=True)
class PlannedTurn:
    """A turn without the assistant's words."""

    session: str
    messages: tuple[dict, ...]
    calls: tuple[dict, ...]
    tokens: int  # that the output should have, words and calls together
    delay_s: float
    fork_of: Fork | None = None
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A trace without the assistant's words."""

    about: str
    sessions: dict[str, Opening]
    turns: tuple[PlannedTurn, ...]


@dataclass(frozen=True)
class Workplace:
    """Where a script plays: a code base in a folder, the people, and the seed's lots still to be drawn."""

    folder: Path
    code: CodeBase
    people: tuple[str, str, str]  # boss, clerk, agent
    random: Random

    def delay_s(self, cause: str) -> float:
        return round(self.random.uniform(*DELAYS[cause]), 3)


def in_scene(script: Callable[[Workplace], Scenario], seed: int) -> Scenario:
    """Run a script in a fresh workspace of its own, which is removed when it is over."""
    name = script.__name__
    random = Random(f"{name} {seed}")
    code = write_code_base(Random(f"{name}, code base {seed}"))
    with tempfile.TemporaryDirectory(prefix="minstate-") as folder:
        write_workspace(Path(folder), code.files, code.tables)
        return script(Workplace(Path(folder), code, tuple(random.sample(WORDS["people"], 3)), random))


def converse(
    scene: Workplace, session: str, request: str, policy: ToolScript, tokens: int, report: int
) -> Iterator[PlannedTurn]:
    """A user's request, the policy's tool calls one a turn, each followed by its result, and a report at the end.

    tokens, report  of an output that calls a tool, and of the last one, which does not
    """
    messages, delay_s = [{"role": "user", "content": request}], scene.delay_s("user")
    result = None
    while True:
        try:
            wanted = policy.send(result)
        except StopIteration:
            yield PlannedTurn(session, tuple(messages), (), report, delay_s)
            return
        yield PlannedTurn(session, tuple(messages), (wanted,), tokens, delay_s)
        messages, delay_s = [run(scene, wanted)], scene.delay_s(wanted["name"])
        result = messages[0]["content"]


def run(scene: Workplace, wanted: dict) -> dict:
    """The message with the result of a tool call."""
    return tool_result(wanted["name"], run_tool(scene.folder, wanted["name"], wanted["arguments"]))


def tool_result(name: str, content: str) -> dict:
    return {"role": "tool", "name": name, "content": content}


def briefing(scene: Workplace, duty: str) -> dict:
    """The system message: who the agent is, what it looks after, and how it works."""
    boss, clerk, agent = scene.people
    names = scene.code.names
    modules = scene.random.sample(list(MODULES.items()), len(MODULES))
    lines = [
        f"You are {agent}, {duty} of {names['shop']}, {names['trade']} in {scene.random.choice(WORDS['towns'])}. "
        f"{boss} runs the shop, {clerk} keeps its books. The workspace holds the order service, {names['package']}:",
        *(f"- {names['package']}/{name}.py: {what}" for name, what in modules),
        "- tests: one file of unittest cases for each module",
        "- docs/promises.md: what the shop promises its customers",
        "",
        "Say in a sentence what you know by now or what you want to find out, call one tool, and go on from there.",
    ]
    return {"role": "system", "content": "\n".join(lines)}


def agentic(seed: int) -> Scenario:
    """Six turns: a complaint, tests, code, a change, the orders concerned, a report."""
    with AgenticWorkload(seed, turns=6) as workload:
        turns = list(workload)
        random = Random(f"agentic {seed}")
        drafts, cause = [], "user"
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            calls = tuple(following[0]["tool_calls"]) if following else ()
            delay_s = round(random.uniform(*DELAYS[cause]), 3)
            drafts.append(PlannedTurn("main", (turn[-1],), calls, 80, delay_s))
            cause = calls[0]["name"] if calls else ""
        opening = Opening(tuple(workload.opening), tuple(workload.tools))
    about = "An agent mends a bug of an order service and looks up what it touched."
    return Scenario(about, {"main": opening}, tuple(drafts))


def coding(scene: Workplace) -> Scenario:
    """35 turns: a bug is mended, then functions learn to refuse negative numbers, each with a test."""
    boss, clerk, agent = scene.people
    request = (
        f"{agent}, {boss} here. {clerk} says that {scene.code.bug.complaint}. Please mend that first. Then see to it "
        "that our functions refuse negative numbers with a ValueError; three of the riskiest, a test for each."
    )
    policy = add_guards(scene.code, scene.random)
    drafts = converse(scene, "main", request, policy, tokens=48, report=48)
    tools = tuple(tool for tool in load_schemas() if tool["function"]["name"] != "query")
    opening = Opening((briefing(scene, "the programmer"),), tools)
    about = "An agent mends a bug of an order service, then guards functions against negative numbers, with tests."
    return Scenario(about, {"main": opening}, tuple(drafts))


def data_analysis(scene: Workplace) -> Scenario:
    """12 turns: a season's sales in SQL, a report, a question about it, more SQL, a second report."""
    boss, clerk, agent = scene.people
    request = (
        f"{agent}, {boss} here. How did the season go? I'd like to know what sold, where it went, and who our best "
        f"customers were. The numbers are in {DATABASE}; amounts are net, in cents."
    )
    question = f"Thank you. {clerk} asks who paid late, what our rule for that is, and how much came back."
    drafts = [
        *converse(scene, "main", request, explore_sales(), tokens=96, report=80),
        *converse(scene, "main", question, look_at_payers(scene.code), tokens=96, report=80),
    ]
    opening = Opening((briefing(scene, "the analyst"),), tuple(load_schemas()))
    about = "An agent answers two questions about a shop's season with SQL."
    return Scenario(about, {"main": opening}, tuple(drafts))


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


def planning(scene: Workplace) -> Scenario:
    """17 turns: an orchestrator looks around, gives errands to three sub-agents forked from it, and acts on them."""
    boss, clerk, agent = scene.people
    request = (
        f"{agent}, {boss} here. Before the new season I want three things looked at: why the test run is red, how the "
        f"orders went, and whether the code keeps our promises. {clerk} also says that {scene.code.bug.complaint}. Let "
        "sub-agents look at them side by side, then mend what has to be mended and tell me."
    )
    errands = {
        "tests": ("Find the line that makes the tests fail. Change nothing.", find_bug(scene.code, scene.random)),
        "orders": ("Survey the season's orders: zones, the best customer, returns.", survey_orders()),
        "promises": ("Compare the numbers in docs/promises.md with those in the code.", check_promises()),
    }
    delegations = tuple(call("delegate", agent=name, task=task) for name, (task, _) in errands.items())

    def main(messages: list[dict], calls: tuple[dict, ...], cause: str, **more) -> PlannedTurn:
        return PlannedTurn("main", tuple(messages), calls, 64, scene.delay_s(cause), **more)

    look = call("list_files", folder=scene.code.names["package"])
    drafts = [main([{"role": "user", "content": request}], (look,), "user")]
    drafts.append(main([run(scene, look)], delegations, look["name"]))
    fork = Fork("main", after_turn=2)
    found = [run_errand(scene, fork, name, task, policy) for name, (task, policy) in errands.items()]
    drafts += [draft for side_by_side in zip_longest(*found) for draft in side_by_side if draft]
    findings = [errand[-1].calls[0]["arguments"]["finding"] for errand in found]

    messages = [tool_result("delegate", finding) for finding in findings]
    path, wrong = re.match(r"(\S+), line \d+: `(.*)`", findings[0]).groups()
    edit = call("edit_file", path=path, old=wrong, new=wrong.replace(scene.code.bug.wrong, scene.code.bug.right))
    drafts.append(main(messages, (edit,), "delegate", waits_for=tuple(errands)))
    before = edit
    for then in (call("run_tests"), query_touched_orders(scene.code, scene.random)):
        drafts.append(main([run(scene, before)], (then,), before["name"]))
        before = then
    drafts.append(main([run(scene, before)], (), before["name"]))
    opening = Opening((briefing(scene, "the planner"),), (*load_schemas(), DELEGATE, REPORT))
    about = "An orchestrator gives errands to three sub-agents forked from it, and acts on their reports."
    return Scenario(about, {"main": opening}, tuple(drafts))


def run_errand(scene: Workplace, fork: Fork, name: str, task: str, policy: ToolScript) -> list[PlannedTurn]:
    """A sub-agent's turns, from its task to its call of `report`, which ends them."""
    messages, delay_s = [{"role": "user", "content": f"You are the sub-agent {name} now. {task}"}], 0.0
    drafts, result = [], None
    while True:
        wanted = policy.send(result)
        drafts.append(PlannedTurn(name, tuple(messages), (wanted,), 64, delay_s, None if drafts else fork))
        if wanted["name"] == "report":
            return drafts
        messages, delay_s = [run(scene, wanted)], scene.delay_s(wanted["name"])
        result = messages[0]["content"]


SCENARIOS: dict[str, Callable[[int], Scenario]] = {
    "agentic": agentic,
    "coding": partial(in_scene, coding),
    "data_analysis": partial(in_scene, data_analysis),
    "planning": partial(in_scene, planning),
}
