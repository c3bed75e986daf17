"""Write novel traces from a seed: `python -m minstate.lab.traces.write NAME --seed N --out FILE`.

A scenario (`minstate.lab.traces.scenarios`) decides which tools are called, and the tools really run. The model
generates the rest of each output once, from the conversation so far. An output keeps whole sentences only, and none
that repeats earlier text. So a trace repeats itself as real work does: by quoting paths, names, keys and lines of code.

On one machine, the same seed gives the same trace. On another machine, rounding may lead the model to other text.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from tqdm import tqdm

from minstate.engine import Engine
from minstate.lab.traces.replay import replay, trace_statistics
from minstate.lab.traces.scenarios import SCENARIOS, PlannedTurn, Scenario
from minstate.lab.traces.trace import Trace, TraceHeader, TraceTurn, write_trace
from minstate.sampling import Sampling
from minstate.session import Session
from minstate.weights import find_model

MIN_TOKENS = 12  # of a sentence; an output with less room beside its calls gets no text
ATTEMPTS = 12  # at each output
# Sentences begin with one of these. Without them, the model soon copies earlier turns and only calls tools.
BEGINNINGS = ["The", "This", "So", "We", "Now", "It looks like", "There", "I", "Our", "Let me", "Next", "From", "That"]

Author = Callable[[PlannedTurn], str]  # writes the text of a turn's output; "" leaves it out


def written_turns(scenario: Scenario, author: Author) -> Iterator[TraceTurn]:
    """Yield the scenario's turns with the author's text. Ask for a turn once the turns before it have been played."""
    counts: Counter[str] = Counter()
    for planned in scenario.turns:
        counts[planned.session] += 1
        text = author(planned)
        output = {"role": "assistant"} | ({"content": text} if text else {})
        if planned.calls:
            output["tool_calls"] = list(planned.calls)
        place = (planned.session, counts[planned.session])
        yield TraceTurn(*place, planned.messages, output, planned.delay_s, planned.fork_of, planned.waits_for)


def recorded_author(turns: Iterable[TraceTurn]) -> Author:
    """An author that repeats the texts of a trace, turn by turn."""
    texts = (turn.output.get("content", "") for turn in turns)
    return lambda _planned: next(texts)


def model_author(engine: Engine, scenario: Scenario, sessions: dict[str, Session], seed: int) -> Author:
    """An author that samples its text from the engine's model. `sessions` hold the conversations so far.

    A sentence is rejected if more than half of its word 4-grams occur earlier in any session. If all attempts fail, a
    turn that calls a tool has no text; without a call, the author raises RuntimeError.
    """
    random, known = Random(f"words {seed}"), set()
    encode = partial(engine.tokenizer.encode, add_special_tokens=False)
    for opening in scenario.sessions.values():
        for message in opening.messages:
            known.update(word_4grams(message["content"]))

    def author(planned: PlannedTurn) -> str:
        for message in planned.messages:
            known.update(word_4grams(message["content"]))
        calls = {"role": "assistant", "content": "", "tool_calls": list(planned.calls)}
        room = planned.tokens - (len(engine.chat.encode_reply(calls)) if planned.calls else 0)
        if room < MIN_TOKENS:
            return ""
        sentences: list[str] = []
        for attempt in range(ATTEMPTS):
            if room - len(encode(" ".join(sentences))) < MIN_TOKENS:
                break
            beginning = " ".join([*sentences, random.choice(BEGINNINGS)])
            ids = encode(beginning)
            with scratch_session(engine, scenario, sessions, planned) as session:
                session.send(list(planned.messages), replay=ids)
                # Each attempt is bolder than the last, and has other noise, which depends on the number of the fork.
                sampling = Sampling(0.7 + 0.03 * attempt, min_p=0.05, seed=seed, stop=("\n", "<"))
                turn = session.send(token_ids=[], max_new_tokens=room - len(ids), sampling=sampling)
            new = new_sentences((beginning + turn.text).removeprefix(" ".join(sentences)).strip(), known)
            known.update(*map(word_4grams, new))
            sentences += new
        if not sentences and not planned.calls:
            raise RuntimeError(f"the model generates nothing new at the end of {planned.session!r}: try another seed")
        return " ".join(sentences)

    return author


def scratch_session(engine: Engine, scenario: Scenario, sessions: dict[str, Session], planned: PlannedTurn) -> Session:
    """A copy of the turn's session, in which an output is tried and then discarded."""
    parent = planned.fork_of.session if planned.fork_of else planned.session
    if parent in sessions:
        return sessions[parent].fork()
    opening = scenario.sessions[parent]
    return engine.open(opening.messages, opening.tools)


def new_sentences(text: str, known: set[tuple[str, ...]]) -> list[str]:
    """The whole sentences at the beginning of the text, up to the first one that repeats itself or `known` 4-grams."""
    kept, known = [], set(known)
    for sentence in re.findall(r"\S.*?(?:[.!?](?=\s|$)|:$)", text):
        grams = word_4grams(sentence)
        repeats = 2 * len(known.intersection(grams)) > len(grams) or len(set(grams)) < len(grams)
        if not grams or repeats or not re.match(r"[\w\"'`(]", sentence):
            break
        known.update(grams)
        kept.append(sentence)
    return kept


def word_4grams(text: str) -> list[tuple[str, ...]]:
    """All runs of four consecutive words, in order. A text with fewer words has none."""
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[at : at + 4]) for at in range(len(words) - 3)]


def generate_trace(name: str, seed: int, engine: Engine) -> Trace:
    """Play a scenario with the engine's model as the author, and show a progress bar.

    Raises `ContextOverflow` if the model has too few positions for the scenario, and RuntimeError if it generates
    nothing new where an output needs text.
    """
    scenario = SCENARIOS[name](seed)
    header = TraceHeader(name, scenario.sessions, seed, scenario.about, len(scenario.turns))
    sessions: dict[str, Session] = {}
    turns = written_turns(scenario, model_author(engine, scenario, sessions, seed))
    playing = replay(engine, Trace(header, turns), sessions=sessions)
    played = list(tqdm(playing, desc=f"{name} {seed}", total=len(scenario.turns), unit="turn"))
    statistics = trace_statistics(played, {name: session.token_ids for name, session in sessions.items()})
    return Trace(with_statistics(header, statistics), tuple(record for record, _ in played))


def with_statistics(header: TraceHeader, statistics: dict) -> TraceHeader:
    """The header with statistics, which hold for one tokenizer: the default model's, or `MINSTATE_MODEL`'s."""
    counted = {key: value for key, value in statistics.items() if key != "turns"}
    return replace(header, more={"model": Path(find_model()).name} | counted)


def main() -> None:
    """Write the trace that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.traces.write", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as coding-0.jsonl")
    arguments = parser.parse_args()
    engine = Engine.from_pretrained(num_pages=1024)
    trace = generate_trace(arguments.name, arguments.seed, engine)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_trace(arguments.out, trace.header, trace.turns)
    print(f"{arguments.out}: {trace.header.turns} turns, {arguments.out.stat().st_size:,} bytes, {trace.header.more}")


if __name__ == "__main__":
    main()
