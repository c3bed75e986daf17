"""The doctor's check of chat templates: `python -m minstate.lab.doctor template PATH…`.

Each path is a Jinja file, a folder of such files, or a folder with a tokenizer, and
the promise is checked that every turn's delta is what the template writes, that calls, thoughts and results can be read
back, and that content cannot write a control token. A template without its tokenizer gets one of bytes, with what looks
like a control token in it as a control token.
"""

import datetime
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from minstate.lab.engines.small_engine import byte_tokenizer
from minstate.lab.measure import machine
from minstate.lab.templates.check import CHECKS, Verdict, check_template, control_tokens_in
from minstate.weights import read_eos, read_tokenizer

# Tokens that end a reply in one family or another. A configuration would tell; a template alone does not.
ENDS = (
    "</s>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|call|>", "<|return|>", "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>", "<turn|>", "<|tool_response>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>",
    "<seed:eos>", "<|observation|>",
)  # fmt: skip


def tokenizers(paths: list[Path]) -> Iterator[tuple[str, object, frozenset[int]]]:
    """The name, the tokenizer and the end tokens of each template that the paths lead to."""
    for path in paths:
        if (path / "tokenizer.json").is_file():
            tokenizer = read_tokenizer(path)
            yield path.name, tokenizer, frozenset(read_eos(path, tokenizer, len(tokenizer)))
            continue
        for file in sorted(path.glob("**/*.jinja")) if path.is_dir() else [path]:
            template = file.read_bytes().decode()
            special = control_tokens_in(template)
            tokenizer = byte_tokenizer(template, special)
            tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
            ends = [*ENDS, "<|end|>"] if "<|channel|>" not in special else ENDS  # which ends one channel of several
            yield file.stem, tokenizer, frozenset(special.index(end) for end in ends if end in special)


def table(verdicts: list[Verdict]) -> str:
    """A row for each template, what is wrong or refused below, and how many came out how."""
    width = max((len(verdict.name) for verdict in verdicts), default=0)
    marks = {"": "·", "r": "r", "w": "✗"}
    lines = [f"{'template':{width}}  {'calls':10}  " + "  ".join(CHECKS)]
    for verdict in verdicts:
        cells = []
        for check in CHECKS:
            problem = verdict.found.get(check)
            mark = (
                " " if problem is None else marks["" if not problem else "r" if problem.startswith("refused") else "w"]
            )
            cells.append(f"{mark:^{len(check)}}")
        calls = verdict.dialect if verdict.writes_calls else f"({verdict.dialect})" if verdict.dialect else "–"
        lines.append(f"{verdict.name:{width}}  {calls:10}  " + "  ".join(cells))
    for verdict in verdicts:
        lines += [f"{verdict.name}: {check}: {problem}" for check, problem in verdict.found.items() if problem]
    counts = Counter(verdict.outcome for verdict in verdicts)
    counted = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("exact", "wrong", "refused"))
    return "\n".join([*lines, f"{len(verdicts)} templates: {counted}. · right, r refused with a reason, ✗ wrong"])


def as_row(verdict: Verdict) -> dict:
    """Name and outcomes, without what the template says."""
    checks = {
        check: "ok" if not problem else "refused" if problem.startswith("refused") else "wrong"
        for check, problem in verdict.found.items()
    }
    about = {"dialect": verdict.dialect, "template_writes_calls": verdict.writes_calls}
    return {"name": verdict.name, "outcome": verdict.outcome, **about, "checks": checks}


def run(paths: list[Path], json_path: Path | None) -> None:
    """Check the templates at these paths, print a table, and perhaps write the outcomes into a file."""
    found = [check_template(*each) for each in tqdm(tokenizers(paths), unit="template", file=sys.stderr)]
    print(table(found))
    if json_path:
        rows = ",\n  ".join(json.dumps(as_row(verdict), ensure_ascii=False) for verdict in found)
        about = {
            "command": f"python -m minstate.lab.doctor {' '.join(sys.argv[1:])}",
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
        }
        json_path.write_text(f'{json.dumps(about)[:-1]}, "rows": [\n  {rows}\n]}}\n')
