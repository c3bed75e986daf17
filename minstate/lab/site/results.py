"""The pages of results: every table and figure of `data/results/`, with the machine, the date and the command."""

import ast
import json
import math
import re
import shlex
from pathlib import Path

PAGES = {  # the title of a page, the beginnings of its files' names, and a sentence
    "The headline": (("ablation",), "What each mechanism is worth on two recorded agents, in tokens and in seconds."),
    "Other engines": (("peers",), "minstate beside llama.cpp, OpenVINO, transformers and vLLM on the same cores."),
    "Kernels on a CPU": (
        ("cpu", "kernels_cpu", "paged_decode"),
        "Forward passes and single kernels beside their roofline.",
    ),
    "Kernels on a GPU": (("gpu", "kernels_cuda", "kernels_gpu"), "Forward passes and single kernels on a GPU."),
    "Speculation": (("speculation", "prompt_lookup"), "What drafts cost and save."),
    "Many agents": (("many_agents", "simulate", "radix_tree"), "Batches, shared prefixes, pools that are too small."),
    "Memory": (("memory", "kv_int8"), "Tiers below the pool, restarts, keys and values in 8 bits."),
    "Many machines and the server": (("many_machines", "serve", "ray"), "Routing, and load on the server."),
    "The doctor": (("doctor", "templates"), "Logs of requests, and chat templates that others published."),
}
DESCRIBED = {  # what a figure shows, for readers who cannot see it
    "ablation_agentic": "Seconds of each of 6 turns of a debugging agent, and of all turns together, by configuration.",
    "ablation_coding": "Seconds of each of 35 turns of a coding agent, and of all turns together, by configuration.",
    "many_agents": "Turns a minute and seconds of a turn against the number of agents, in each configuration.",
    "pool_under_pressure": "Hit rate and tokens that are computed again against the size of the pool.",
    "simulate_agents": "Agents that one GPU serves, by model and policy, as predicted.",
    "simulate_eviction": "The share of tokens that is computed again against the size of the pool, by eviction policy.",
    "speculation": "Milliseconds of decoding a token, by workload and source of drafts.",
}
TITLES = {  # of the files, in the order in which they stand on their page
    "ablation_bfloat16": "Every combination, bfloat16",
    "ablation_float32": "The ladder, float32",
    "ablation_bfloat16_avx2": "The ladder, bfloat16, on a machine with AVX2 and torch's operations",
    "ablation_float32_avx2": "Every combination, float32, on a machine with AVX2 and torch's operations",
    "peers_agentic_bfloat16": "6 turns of debugging, bfloat16",
    "peers_coding_bfloat16": "35 turns of coding, bfloat16",
    "peers_agentic_float32": "6 turns of debugging, float32",
    "peers_coding_float32": "35 turns of coding, float32",
    "peers_steps_bfloat16": "Single steps, bfloat16",
    "peers_steps_float32": "Single steps, float32",
    "peers_agentic_float32_avx2": "6 turns of debugging, float32, on a machine with AVX2 and torch's operations",
    "peers_coding_float32_avx2": "35 turns of coding, float32, on a machine with AVX2 and torch's operations",
    "peers_steps_bfloat16_avx2": "Single steps, bfloat16, on a machine with AVX2",
    "peers_steps_float32_avx2": "Single steps, float32, on a machine with AVX2",
    "cpu_steps": "Forward passes",
    "cpu_steps_avx2": "Forward passes, on a machine with AVX2",
    "kernels_cpu_float32": "Single kernels, float32",
    "kernels_cpu_bfloat16": "Single kernels, bfloat16",
    "paged_decode": "What a page table costs",
    "cpu_ledger": "What was tried to make the CPU path fast",
    "speculation": "What speculation is worth",
    "prompt_lookup": "Two structures for prompt lookup",
    "many_agents": "Agents on one engine",
    "many_agents_avx2": "Agents on one engine, on a machine with AVX2 and torch's operations",
    "simulate": "Ten thousand sessions, simulated",
    "radix_tree": "The prefix tree's bookkeeping",
    "memory": "Small pools, with and without tiers",
    "memory_restart": "After a restart",
    "kv_int8": "Keys and values in 8 bits",
    "many_machines": "A hundred machines, on paper",
    "serve_agents_bfloat16": "One agent, two servers",
    "serve_load_bfloat16": "Load on the server",
    "doctor": "The doctor on a large log",
    "templates": "Chat templates that others published",
}
COLUMNS = {  # of a wide table, those that stand on the page; the others are behind a fold
    "ablation": ("workload", "configuration", "forwarded", "passes", "total s", "times faster", "last turn"),
    "speculation": ("dtype", "workload", "configuration", "tokens a pass", "decode ms a token", "times faster"),
}
OWNERS = {"pool_under_pressure": "many_agents"}  # a figure that does not begin with the name of its table
MOST_ROWS = 80
WIDE = 12  # columns; what has more is folded


def grouped(folder: Path) -> dict[str, list[Path]]:
    """The JSON and Markdown files of the results, by the title of their page; what no page lists is in *More*."""
    pages: dict[str, list[Path]] = {title: [] for title in [*PAGES, "More"]}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.md")]):
        fits = [
            (len(each), title) for title, (starts, _) in PAGES.items() for each in starts if path.stem.startswith(each)
        ]
        pages[max(fits)[1] if fits else "More"].append(path)
    order = list(TITLES)
    for paths in pages.values():
        paths.sort(key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    return {title: paths for title, paths in pages.items() if paths}


def page(title: str, paths: list[Path], root: Path) -> str:
    """One page as Markdown, whose links are seen from the folder of the results."""
    parts = [f"# {title}", PAGES[title][1] if title in PAGES else ""]
    for path in paths:
        parts += [ledger(path)] if path.suffix == ".md" else record(path, root)
    return "\n\n".join(filter(None, parts)) + "\n"


def ledger(path: Path) -> str:
    """A text beside the tables, whose headings move one level down."""
    text = re.sub(r"\A# .*", f"# {heading_of(path)}", path.read_text(encoding="utf-8"))
    return re.sub(r"^#", "##", text, flags=re.MULTILINE).strip()


def record(path: Path, root: Path) -> list[str]:
    """One file of results: what was measured and how, its figures, its tables."""
    data = json.loads(path.read_text(encoding="utf-8"))
    how = {name: data.pop(name, "") for name in ("machine", "date", "command")}
    lines = [f"- Machine: {how['machine']}", f"- Date: {how['date']}", f"- Command: `{how['command']}`"]
    lines.append(f'- Data: <a href="../data/{path.name}" download>{path.name}</a>')
    parts = [f"## {heading_of(path)}", what_it_measures(how["command"], root), "\n".join(lines)]
    parts += [figure(picture) for picture in figures(path)]
    single = {name: value for name, value in data.items() if not isinstance(value, list | dict)}
    tables = sorted(data.items(), key=lambda each: each[0] != "rows")
    parts += [table([single])] if single else []
    for name, value in tables:
        columns = next((each for start, each in COLUMNS.items() if path.stem.startswith(start)), ())
        if name == "rows" and columns:
            parts.append(table([{column: row.get(column) for column in columns} for row in value]))
        parts += section(name, value)
    return parts


def heading_of(path: Path) -> str:
    """The title of one file of results."""
    return TITLES.get(path.stem, path.stem.replace("_", " "))


def anchor_of(path: Path) -> str:
    """The place of one file of results on its page."""
    return re.sub(r"[^\w\- ]", "", heading_of(path).lower()).replace(" ", "-")


def what_it_measures(command: str, root: Path) -> str:
    """The first paragraph of the docstring of the program that `command` runs."""
    words = shlex.split(command)
    module = words[words.index("-m") + 1 :] if "-m" in words else []
    if not module:
        return ""
    path = root / Path(*module[0].split("."))
    names = [path / f"{module[1]}.py"] if module[1:] else []
    for each in [*names, path / "__init__.py", path.with_suffix(".py")]:
        if each.exists() and (text := ast.get_docstring(ast.parse(each.read_text(encoding="utf-8")))):
            return text.split("\n\n")[0]
    return ""


def figures(path: Path) -> list[Path]:
    """The pictures that were drawn from one file of results."""
    name, _, dtype = path.stem.rpartition("_")
    found = []
    for picture in sorted([*path.parent.glob("*.svg"), *path.parent.glob("*.png")]):
        stem = picture.stem
        drawn = OWNERS.get(stem) == path.stem or stem == path.stem or stem.startswith(f"{path.stem}_")
        of_type = dtype in ("float32", "bfloat16") and stem.startswith(f"{name}_") and stem.endswith(dtype)
        if (drawn or of_type) and stem not in {each.stem for each in found}:
            found.append(picture)
    return found


def figure(path: Path) -> str:
    """A picture with a text for readers who cannot see it."""
    name = path.stem.removesuffix("_float32").removesuffix("_bfloat16")
    shown = DESCRIBED.get(name) or f"Figure: {path.stem.replace('_', ' ')}"
    return f"![{shown}]({path.name})"


def section(name: str, value: object) -> list[str]:
    """The tables that `value` holds, under its name. Values that were kept turn by turn stay in the data."""
    if isinstance(value, dict) and any(isinstance(each, list) for each in value.values()):
        return [part for inner, each in value.items() for part in section(f"{name}, {inner}", each)]
    rows = as_rows(value)
    if not rows:
        return []
    heading = [] if name == "rows" else [f"**{name.replace('_', ' ')}**"]
    if len(rows) > MOST_ROWS:
        return [*heading, *summary(rows)]
    if len(rows) > 20 or len(rows[0]) > WIDE or isinstance(value, dict):
        title = f"All rows and columns ({len(rows)})" if name == "rows" else name.replace("_", " ")
        return [fold(title, table(rows))]
    return [*heading, table(rows)]


def as_rows(value: object) -> list[dict]:
    """A list of rows; a dictionary as rows with its names in front; nothing for what is no table."""
    if isinstance(value, dict):
        if all(isinstance(each, dict) for each in value.values()):
            value = [{"name": inner, **each} for inner, each in value.items()]
        else:
            value = [{"name": inner, "value": each} for inner, each in value.items()]
    table_like = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return value if table_like else []


def summary(rows: list[dict]) -> list[str]:
    """Of a long table, how often each value of its columns occurs, for columns with few values."""
    parts = [f"{len(rows):,} rows."]
    for column in rows[0]:
        values = [row.get(column) for row in rows if not isinstance(row.get(column), list | dict)]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        if 1 < len(counts) <= 30:
            ordered = sorted(counts.items(), key=lambda each: -each[1])
            parts.append(table([{column: value, "rows": count} for value, count in ordered]))
    return parts


def fold(title: str, text: str) -> str:
    """`text` behind a line that opens it."""
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def table(rows: list[dict]) -> str:
    """A Markdown table; numbers are aligned to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], list | dict)))
    numeric = {name for name in columns if all(isinstance(row.get(name), int | float | None) for row in rows)}
    lines = [columns, ["---:" if name in numeric else "---" for name in columns]]
    lines += [[cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(str(each).replace("|", "\\|") for each in line) + " |" for line in lines)


def cell(value: object) -> str:
    """A value as a reader wants to see it: four digits, thousands apart, nothing for what was not measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{min(digits, 9)}f}".rstrip("0").rstrip(".") if digits else f"{value:,.0f}"
    return re.sub(r"\s+", " ", str(value))
