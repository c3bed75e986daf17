"""Weka traces: recorded traffic of coding agents, without its texts, which the simulator replays and writes.

The format comes from [kv-cache-tester](https://github.com/callanjfox/kv-cache-tester); AgentX uses it, and
[aiperf](https://docs.nvidia.com/aiperf/tutorials/datasets-inputs/replay-weka-agentic-coding-traces) documents it. A
file is one conversation in JSON:

    {"id", "block_size", "hash_id_scope", "requests": [
        {"t", "type": "n" or "s", "in", "out", "hash_ids", "api_time", "think_time"},
        {"t", "type": "subagent", "agent_id", "requests": [...]}]}

A hash id stands for one full block of a prompt and all that is before it. Two prompts that begin with the same ids
begin with the same tokens. The scope "local" means that ids are those of this file, sub-agents included; ids of the
scope "global" mean the same in all files. The last, partly filled block of a prompt has no id.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minstate.lab.serving.traffic import AgentSession, AgentTurn, token_ids
from minstate.lab.traces.records import expect, located

OWN_TEXT, BLOCK_TEXT, GLOBAL = 8, 9, 2**32  # streams of token ids: of one request; of a block, in one file or in all


@dataclass(frozen=True)
class WekaRequest:
    """One request: lengths in tokens, times in seconds from the beginning of the trace."""

    at_s: float
    agent: str  # "" is the conversation itself; else a sub-agent
    tokens: int
    output: int
    blocks: tuple[int, ...]
    took_s: float = 0.0


@dataclass(frozen=True)
class WekaTrace:
    """One conversation with its sub-agents; the requests in order of their time."""

    name: str
    block_size: int
    requests: tuple[WekaRequest, ...]
    scope: str = "local"


def read_weka(path: Path) -> WekaTrace:
    """Read a trace. Raises `TraceError` with file, request, what was expected and found; OSError."""
    with located(str(path)):
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            value = f"no JSON ({error})"
        expect(
            isinstance(value, Mapping) and isinstance(value.get("requests"), list), 'an object with "requests"', value
        )
        size = value.get("block_size", 64)
        expect(type(size) is int and size > 0, 'a positive number as "block_size"', size)
        found = list(_requests(value["requests"], "", 0.0, size))
        expect(found, 'at least one request in "requests"', value["requests"])
        found.sort(key=lambda request: request.at_s)
        return WekaTrace(str(value.get("id", path.stem)), size, tuple(found), str(value.get("hash_id_scope", "local")))


def _requests(values: list, agent: str, start_s: float, size: int) -> Iterable[WekaRequest]:
    for number, value in enumerate(values, 1):
        what = f"request {number}" + (f" of {agent}" if agent else "")
        expect(isinstance(value, Mapping) and isinstance(value.get("t"), int | float), f'a time "t" in {what}', value)
        if value.get("type") == "subagent":
            inner = value.get("requests") or []
            # Inner times are the trace's in some files, and begin with the sub-agent in others.
            relative = bool(inner) and inner[0].get("t", 0) < value["t"]
            name = str(value.get("agent_id") or f"{agent}.{number}")
            yield from _requests(inner, name, value["t"] if relative else 0.0, size)
            continue
        counts = [value.get("in"), value.get("out")]
        expect(all(type(n) is int and n >= 0 for n in counts), f'token counts "in" and "out" in {what}', counts)
        ids = value.get("hash_ids", ())
        expect(
            isinstance(ids, list) and all(type(i) is int for i in ids), f'whole numbers in "hash_ids" of {what}', ids
        )
        tokens = max(1, counts[0])
        took_s = float(value.get("api_time") or 0.0)
        yield WekaRequest(start_s + value["t"], agent, tokens, max(1, counts[1]), tuple(ids[: tokens // size]), took_s)


def write_weka(path: Path, session: AgentSession, *, block_size: int = 64, output_s: float = 0.01) -> None:
    """Write a session of the synthetic traffic as a trace of its own.

    output_s  seconds that a token of an output is taken to last; the traffic itself has no durations
    """
    blocks: dict[tuple, int] = {}
    logs: dict[int, list[int]] = {}
    ends_s: dict[tuple[int, int], float] = {}
    rows: dict[int, list[dict[str, Any]]] = {}
    forks = {turn.agent: turn for turn in session.turns if turn.turn == 0}
    for turn in session.turns:
        if turn.agent not in logs:
            logs[turn.agent] = list(logs[turn.fork_of][: turn.start]) if turn.fork_of is not None else []
        log, (new, output) = logs[turn.agent], session.ids(turn)
        log += new
        at_s = max((ends_s[name] for name in turn.after), default=0.0) + turn.delay_s
        ids, above = [], 0
        for start in range(0, len(log) - block_size + 1, block_size):
            above = blocks.setdefault((above, *log[start : start + block_size]), len(blocks) + 1)
            ids.append(above)
        took_s = output_s * turn.output
        ends_s[turn.name] = at_s + took_s
        rows.setdefault(turn.agent, []).append({
            "t": at_s, "type": "n", "in": len(log), "out": turn.output, "hash_ids": ids, "api_time": took_s,
            "think_time": turn.delay_s,
        })  # fmt: skip
        log += output
    main = rows.pop(0)
    main += [
        {"t": inner[0]["t"], "type": "subagent", "agent_id": f"agent_{agent:03}", "requests": inner}
        | ({"forked": True} if forks[agent].fork_of is not None else {})
        for agent, inner in rows.items()
    ]
    main.sort(key=lambda row: row["t"])
    about = {"id": f"session_{session.number}", "block_size": block_size, "hash_id_scope": "local"}
    path.write_text(json.dumps({**about, "requests": main}) + "\n")


@dataclass(frozen=True)
class RecordedSession:
    """A trace in the place of an `AgentSession`, for `minstate.lab.serving.simulation`.

    Each request is an agent of one turn. So the scheduler, the prefix cache and the clock see a stateless client, whose
    prompts share blocks as the trace says. Outputs are tokens of their own: where a later prompt has them, the trace
    has new hash ids for them, and they are prefilled.
    """

    number: int
    trace: WekaTrace
    arrival_s: float = 0.0
    application: int = 0

    @cached_property
    def turns(self) -> list[AgentTurn]:
        """A turn for each request, which is sent as long after the ones that it waits for as in the trace."""
        requests, turns = self.trace.requests, []
        latest: dict[str, int] = {}
        for place, request in enumerate(requests):
            waits = [latest[request.agent]] if request.agent in latest else [latest[""]] if "" in latest else []
            if not request.agent:  # the conversation goes on when sub-agents that have ended by then have reported
                ended = [at for name, at in latest.items() if name and _end_s(requests[at]) <= request.at_s]
                waits += [at for at in ended if not waits or at > waits[0]]
            delay_s = max(0.0, request.at_s - max((_end_s(requests[at]) for at in waits), default=request.at_s))
            after = tuple((at, 0) for at in waits)
            turn = AgentTurn(self.number, place, 0, 0, after, delay_s, None, 0, request.tokens, request.output)
            turns.append(replace(turn, last=True))
            latest[request.agent] = place
        return turns

    def ids(self, turn: AgentTurn) -> tuple[list[int], list[int]]:
        """The prompt's tokens, of which each block has its own, and the output's."""
        request, size = self.trace.requests[turn.agent], self.trace.block_size
        space = GLOBAL if self.trace.scope == "global" else self.number
        ids: list[int] = []
        for block in request.blocks:
            ids += token_ids((BLOCK_TEXT, space, block), 0, size)
        own = token_ids((OWN_TEXT, self.number, turn.agent), 0, request.tokens - len(ids) + request.output)
        return ids + own[: len(own) - request.output], own[len(own) - request.output :]


def _end_s(request: WekaRequest) -> float:
    return request.at_s + request.took_s
