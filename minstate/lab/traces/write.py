"""Write novel traces from a seed: `python -m minstate.lab.traces.write NAME --seed N --out FILE`.

A script (`minstate.lab.traces.scenarios`) says which tools are called, and they run. What the assistant says besides is
sampled, once, from the model, which reads the real conversation so far: whole sentences, none of which repeats what was
said or read before. So a trace repeats itself only as work does: paths, names, keys and lines of code are quoted.

The same seed gives the same trace on one machine; on another one, rounding may lead the model to other words.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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

FEWEST = 12  # tokens that a sentence needs: with less room beside its calls, an output has no words
RUN = 4  # words in a row that make a repetition
ATTEMPTS = 12
# How sentences may begin: left to itself, the model soon does nothing but call tools, as it sees the others do.
BEGINNINGS = ["The", "This", "So", "We", "Now", "It looks like", "There", "I", "Our", "Let me", "Next", "From", "That"]

Say = Callable[[PlannedTurn], str]  # what the assistant says in a turn; "" for nothing


def written_turns(scenario: Scenario, say: Say) -> Iterator[TraceTurn]:
    """The script's turns, with words. They are asked for one by one, when the turns before have been taken."""
    turns: Counter[str] = Counter()
    for draft in scenario.turns:
        turns[draft.session] += 1
        words = say(draft)
        output = {"role": "assistant"} | ({"content": words} if words else {})
        if draft.calls:
            output["tool_calls"] = list(draft.calls)
        place = (draft.session, turns[draft.session])
        yield TraceTurn(*place, draft.messages, output, draft.delay_s, draft.fork_of, draft.waits_for)


def recorded_author(turns: Iterable[TraceTurn]) -> Say:
    """Say what was said in a trace, turn by turn."""
    said = (turn.output.get("content", "") for turn in turns)
    return lambda _: next(said)


def model_author(engine: Engine, scenario: Scenario, sessions: dict[str, Session], seed: int) -> Say:
    """Say what the model says, after a beginning drawn from a list: `sessions` hold the conversations so far.

    A sentence is refused if more than half of its runs of four words were said or read before in any session. After
    some attempts in vain a turn that calls a tool has no words. Raises RuntimeError where there is no call either.
    """
    random, known = Random(f"words {seed}"), set()
    encode = partial(engine.tokenizer.encode, add_special_tokens=False)
    for opening in scenario.sessions.values():
        for message in opening.messages:
            known.update(word_4grams(message["content"]))

    def say(draft: PlannedTurn) -> str:
        for message in draft.messages:
            known.update(word_4grams(message["content"]))
        calls = {"role": "assistant", "content": "", "tool_calls": list(draft.calls)}
        room = draft.tokens - (len(engine.chat.reply(calls)) if draft.calls else 0)
        if room < FEWEST:
            return ""
        words: list[str] = []
        for attempt in range(ATTEMPTS):
            if room - len(encode(" ".join(words))) < FEWEST:
                break
            begun = " ".join([*words, random.choice(BEGINNINGS)])
            ids = encode(begun)
            with scratch(engine, scenario, sessions, draft) as session:
                session.send(list(draft.messages), replay=ids)
                # Later attempts are bolder, and each draws from noise of its own: a fork's depends on its number.
                sampling = Sampling(0.7 + 0.03 * attempt, min_p=0.05, seed=seed, stop=("\n", "<"))
                turn = session.send(token_ids=[], max_new_tokens=room - len(ids), sampling=sampling)
            more = new_sentences((begun + turn.text).removeprefix(" ".join(words)).strip(), known)
            known.update(*map(word_4grams, more))
            words += more
        if not words and not draft.calls:
            raise RuntimeError(f"the model says nothing new at the end of {draft.session!r}: try another seed")
        return " ".join(words)

    return say


def scratch(engine: Engine, scenario: Scenario, sessions: dict[str, Session], draft: PlannedTurn) -> Session:
    """A copy of the draft's session, to try an answer in and throw away."""
    parent = draft.fork_of.session if draft.fork_of else draft.session
    if parent in sessions:
        return sessions[parent].fork()
    opening = scenario.sessions[parent]
    return engine.open(opening.messages, opening.tools)


def new_sentences(text: str, known: set[tuple[str, ...]]) -> list[str]:
    """The whole sentences that the text begins with, up to one that repeats what is known, or itself."""
    kept, known = [], set(known)
    for sentence in re.findall(r"\S.*?(?:[.!?](?=\s|$)|:$)", text):
        its_runs = word_4grams(sentence)
        repeats = 2 * len(known.intersection(its_runs)) > len(its_runs) or len(set(its_runs)) < len(its_runs)
        if not its_runs or repeats or not re.match(r"[\w\"'`(]", sentence):
            break
        known.update(its_runs)
        kept.append(sentence)
    return kept


def word_4grams(text: str) -> list[tuple[str, ...]]:
    """All runs of four words, in order; a text with fewer words has none."""
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]


def generate_trace(name: str, seed: int, engine: Engine) -> Trace:
    """Run a script with the engine's model as the author, with a bar of turns.

    Raises `ContextOverflow` if the model has too few positions for the script, RuntimeError if it has nothing to say.
    """
    scenario = SCENARIOS[name](seed)
    header = TraceHeader(name, scenario.sessions, seed, scenario.about, len(scenario.turns))
    sessions: dict[str, Session] = {}
    turns = written_turns(scenario, model_author(engine, scenario, sessions, seed))
    playing = replay(engine, Trace(header, turns), sessions=sessions)
    played = list(tqdm(playing, desc=f"{name} {seed}", total=len(scenario.turns), unit="turn"))
    figures = trace_statistics(played, {name: session.token_ids for name, session in sessions.items()})
    return Trace(with_statistics(header, figures), tuple(record for record, _ in played))


def with_statistics(header: TraceHeader, figures: dict) -> TraceHeader:
    """The header with figures, which hold for one tokenizer: the default model's, or `MINSTATE_MODEL`'s."""
    more = {"model": Path(find_model()).name} | {key: figure for key, figure in figures.items() if key != "turns"}
    return TraceHeader(header.name, header.sessions, header.seed, header.about, header.turns, more)


def main() -> None:
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
