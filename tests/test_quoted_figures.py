"""Every speed that the README, a page of `docs/` or a notebook's text quotes comes from `data/results/`."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from minstate.lab.bench.ablation_record import times_faster

ROOT = Path(__file__).resolve().parents[1]
PLAN = ROOT / "docs" / "many_machines.md"  # its seconds are predicted: tests/lab/serving/ ties them
PAGES = [
    ROOT / "README.md",
    ROOT / "REPORT.md",
    *sorted(set((ROOT / "docs").glob("*.md")) - {PLAN}),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
RESULTS = (ROOT / "docs" / "results.md").read_text()
WORKLOADS, DRAFTING = ("agentic", "coding"), "minstate, stateful and prompt lookup"
# Times, rates and factors. Tokens, pages and shares are counts: notebooks assert those where they state them.
SPEED = re.compile(r"(?<![\w.,])\d[\d.,]*\s(?:×(?!\s*[\d`])|[mµ]?s\b|[GMT]B/s|[GT]FLOP/s|tokens/s|tokens a second)")


def result(name: str) -> dict:
    return json.loads((ROOT / "data" / "results" / f"{name}.json").read_text())


def quotable() -> set[str]:
    """What may be quoted, as it is written."""
    columns = ("times faster", "median turn", "last turn")
    ladders = [row for dtype in ("float32", "bfloat16") for row in result(f"ablation_{dtype}")["rows"]]
    turns = {f"{row[name]:.1f} ×" for row in ladders for name in columns}
    turns |= (
        {f"{row['total s']:.0f} s" for row in ladders}
        | {whole(row) for row in ladders}
        | {cell for row in ladders for cell in parts(row)}
    )
    files = [path.stem for path in (ROOT / "data" / "results").glob("peers_steps_*.json")]
    steps = {f"{row['median step_ms']:.0f} ms" for name in files for row in result(name)["rows"]}
    steps |= {f"{row['prompt tokens/s']:,.0f} tokens/s" for name in files for row in result(name)["rows"]}
    engines = [row for workload in WORKLOADS for row in result(f"peers_{workload}_bfloat16")["rows"]]
    totals = {whole(row) for row in engines} | {cell for row in engines for cell in parts(row)}
    totals |= {f"{row['p50 s a request']:.2f} s" for row in result("serve_agents_bfloat16")["rows"]}
    totals |= {factor for workload in WORKLOADS for factor in factors(workload)}
    faster = {f"{row['times faster']:.1f} ×" for row in result("speculation")["rows"]}
    passes = [row["median ms"] for row in result("cpu_steps")["rows"]]
    steps |= {f"{ms:.0f} ms" for ms in passes} | {f"{ms / 1000:.1f} s" for ms in passes}
    steps |= {f"{step['median ms']:.0f} ms" for step in result("kv_int8")["decode step"]}
    steps |= {f"{row['median ms']:.1f} ms" for row in result("paged_decode")["rows"]}
    return turns | steps | totals | faster | set(first_tokens().values())


def whole(row: dict) -> str:
    """Seconds of a conversation, as the pages write them."""
    return f"{row['total s']:.0f} s" if row["total s"] >= 9.5 else f"{row['total s']:.1f} s"


def parts(row: dict) -> list[str]:
    """The wait for a first token, and the rate of the others."""
    return [f"{row['first token s']:.2f} s", f"{row['tokens/s after it']:.0f} tokens/s"]


def over_vllm(workload: str) -> dict[str, float]:
    """How many times faster minstate with prompt lookup is than vLLM as it comes."""
    turns = pd.DataFrame(result(f"peers_{workload}_bfloat16")["raw"])
    return times_faster(turns, "vllm, prefix caching", DRAFTING, "seconds")


def factors(workload: str) -> set[str]:
    """The quotients of all engines' seconds and ours, and over vLLM as it comes those of the median turn, too."""
    rows = {row["configuration"]: row["total s"] for row in result(f"peers_{workload}_bfloat16")["rows"]}
    found = {f"{seconds / rows[DRAFTING]:.1f} ×" for seconds in rows.values()}
    return found | {f"{value:.1f} ×" for value in over_vllm(workload).values()}


def first_tokens() -> dict[str, str]:
    """How long the first token of a session of 7,000 tokens takes, by where its K/V comes from."""
    rows = {row["from"]: row["opened s"] + row["first token s"] for row in result("memory_restart")["rows"]}
    return {name: f"{seconds:.0f} s" if seconds > 10 else f"{seconds:.1f} s" for name, seconds in rows.items()}


def quoted(page: Path) -> list[str]:
    if page.suffix == ".md":
        texts = [page.read_text()]
    else:
        texts = [cell.source for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "markdown"]
    return [" ".join(match.group().split()) for text in texts for match in SPEED.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_speeds_come_from_the_results(page):
    assert set(quoted(page)) <= quotable(), f"{page.name} quotes a speed that data/results/ does not hold"


STEPS = {
    "minstate": "minstate, stateful",
    "OpenVINO, from weights of 16 bits": "openvino, prefix caching",
    "vLLM": "vllm, prefix caching",
    "transformers": "transformers, cache kept",
}


def test_the_results_page_quotes_what_a_step_takes_elsewhere():
    for name, page in [("peers_steps_bfloat16", RESULTS), ("peers_steps_float32_avx2", RESULTS)]:
        rows = {(row["configuration"], row["context"]): row for row in result(name)["rows"]}
        for engine, configuration in STEPS.items():
            found = [rows[configuration, context] for context in (1024, 6144)]
            cells = [f"{row['median step_ms']:.0f} ms" for row in found]
            cells += [f"{row['prompt tokens/s']:,.0f} tokens/s" for row in found]
            assert f"| {engine} | {' | '.join(cells)} |" in page, (name, engine)


def test_the_results_page_quotes_what_the_kernels_take():
    text = " ".join(RESULTS.split())
    record = result("cpu_steps")
    rows = {(row["dtype"], row["kernels"], row["context"], row["pass"]): row for row in record["rows"]}

    def both(dtype, context, tokens):
        return [f"{rows[dtype, kernels, context, tokens]['median ms']:.0f} ms" for kernels in ("cpu", "torch")]

    (ours, torch), (ours_half, torch_half) = (both(dtype, 1024, "one token") for dtype in ("float32", "bfloat16"))
    assert f'takes {ours} in float32, and {torch} with `kernels="torch"`; in bfloat16 it is {ours_half} and' in text
    assert f"and {torch_half}. A forward pass over 8 tokens takes" in text
    eight = [" and ".join(both(dtype, 1024, "8 tokens")) for dtype in ("float32", "bfloat16")]
    assert f"over 8 tokens takes {eight[0]} in float32, and {eight[1]} in bfloat16" in text
    long = [f"{rows[dtype, kernels, 4096, '512 tokens']['median ms'] / 1000:.1f} s"
            for dtype in ("float32", "bfloat16") for kernels in ("cpu", "torch")]  # fmt: skip
    assert "512 tokens behind 4,096 take {}, and {} by torch; in bfloat16 {} and {}.".format(*long) in text
    for tokens, form in [("one token", "A token takes {} to {} times"), ("8 tokens", "8 tokens {} to {} times")]:
        floors = [rows[key]["times the floor"] for key in rows if key[1] == "cpu" and key[3] == tokens]
        assert form.format(*(f"{bound:.1f}" for bound in (min(floors), max(floors)))) in text
    memory = record["weights_gb"]
    assert f"fill {memory['bfloat16 cpu']:.2f} GB, and {memory['bfloat16 torch']:.2f} GB with torch" in text


ENGINES = {  # each as it comes, or with its prefixes kept; and with drafts
    "minstate": ("minstate, stateful", DRAFTING),
    "OpenVINO": ("openvino, prefix caching", "openvino, prefix caching and prompt lookup"),
    "vLLM": ("vllm, prefix caching", "vllm, prefix caching and ngram"),
    "llama.cpp": ("llama_cpp, prefix kept", "llama_cpp, prompt lookup"),
    "transformers": ("transformers, cache kept", ""),
}


def test_the_report_quotes_what_whole_conversations_take():
    rows = {w: {row["configuration"]: row for row in result(f"peers_{w}_bfloat16")["rows"]} for w in WORKLOADS}
    report = (ROOT / "REPORT.md").read_text()
    for engine, names in ENGINES.items():
        cells = [whole(rows[w][name]) if name else "–" for w in WORKLOADS for name in names]
        assert f"| {engine} | {' | '.join(cells)} |" in report
    for workload, text in [("agentic", "on 6 turns"), ("coding", "on 35")]:
        over = {name: f"{value:.1f}" for name, value in over_vllm(workload).items()}
        assert f"**{over['median']} × ({over['from']}–{over['to']})** {text}" in " ".join(report.split())
        assert min(rows[workload].values(), key=lambda row: row["total s"])["configuration"].startswith("minstate")


def test_the_report_quotes_what_each_mechanism_is_worth():
    report = (ROOT / "REPORT.md").read_text()
    rows = {(row["workload"], row["configuration"]): row for row in result("ablation_bfloat16")["rows"]}
    for name in ("naive", "prefix reuse", "stateful", "+ prompt lookup", "+ grammar", "+ 8-bit K/V"):
        cells = []
        for workload in WORKLOADS:
            row = rows[workload, name]
            faster = "" if name == "naive" else f", {row['times faster']:.1f} ×"
            cells += [whole(row) + faster, *parts(row)]
        assert f" | {' | '.join(cells)} |" in report, name


def speculated(dtype: str, workload: str, configuration: str = "prompt lookup, corpus, grammar") -> dict:
    """What drafts gain: by default, all kinds of them together."""
    case = dtype, workload, configuration
    rows = result("speculation")["rows"]
    (row,) = (row for row in rows if (row["dtype"], row["workload"], row["configuration"]) == case)
    return row


def test_the_results_page_quotes_what_speculation_gains():
    text = " ".join(RESULTS.split())
    workloads = ("35 turns replayed", "6 turns replayed", "random text")
    for dtype in ("bfloat16", "float32"):
        first, second, third = (f"{speculated(dtype, name)['times faster']:.1f} ×" for name in workloads)
        assert f"in {dtype} {first}, {second} and {third}" in text
        gains = [speculated(dtype, name, "prompt lookup")["times faster"] for name in workloads]
        comma = "," if dtype == "bfloat16" else ""
        assert "in {}{} {:.1f} ×, {:.1f} × and {:.1f} ×".format(dtype, comma, *gains) in text
    first, second, third = (f"{speculated('bfloat16', name)['tokens a pass']:.1f}" for name in workloads)
    assert (
        f"{first} tokens a forward pass are generated on 35 turns of a coding agent, {second} on 6 turns" in text
        and f"{third} on random" in text
    )


def test_the_results_page_says_where_outputs_differ():
    same = {
        dtype: speculated(dtype, "written calls")["turns with the same output"] for dtype in ("float32", "bfloat16")
    }
    assert same == {"float32": 1, "bfloat16": 6 / 8}
    assert "two of eight replies" in " ".join(RESULTS.split())


def test_it_is_said_what_comes_back_after_a_restart():
    text, seconds = " ".join((ROOT / "docs" / "using.md").read_text().split()), first_tokens()
    assert f"of 7,000 tokens then takes {seconds['disk']}, and {seconds['nothing']} where it is computed" in text
    assert f"({seconds['export']} from an export;" in text


def test_the_results_page_quotes_what_8_bits_change():
    text, record = " ".join(RESULTS.split()), result("kv_int8")
    own, small = record["kv_bytes_per_token"].values()
    assert f"{small:,} bytes a token, and {own:,} in float32" in text
    equal = [f"{100 * row['equal choices']:.0f}" for row in record["rows"]]
    assert f"at {min(equal)} to {max(equal)} % of the positions" in text
    assert all(abs(row["perplexity, int8"] / row["perplexity"] - 1) < 0.001 for row in record["rows"])
    assert "perplexity changes by less than 0.1 %" in text
    behind = [f"{step['median ms']:.0f} ms" for step in record["decode step"] if step["context"] == 7168]
    assert f"behind 7,168 others takes {behind[1]}, and {behind[0]} in float32" in text


def test_it_is_said_what_the_server_computes_under_load():
    rows = result("serve_load_bfloat16")["rows"]
    shares = [f"{100 * row['prefilled'] / row['prompt tokens']:.0f}" for row in rows]
    text = " ".join((ROOT / "docs" / "serving.md").read_text().split())
    assert f"computed {min(shares)} to {max(shares)} % of the prompt tokens" in text
    assert {row["clients"] for row in rows} == {1, 4, 16}


def test_it_is_said_what_two_servers_do_for_the_same_agents():
    rows = {(row["clients"], row["server"]): row for row in result("serve_agents_bfloat16")["rows"]}
    servers, text = ("minstate", "minstate, drafts", "vllm"), (ROOT / "docs" / "serving.md").read_text()
    for clients in (1, 4, 16):
        cells = [f"{rows[clients, server]['requests a minute']:.0f}" for server in servers]
        cells += [f"{rows[clients, server]['p50 s a request']:.2f} s" for server in servers]
        assert f"| {clients} | {' | '.join(cells)} |" in text
        assert rows[clients, "minstate"]["requests a minute"] > rows[clients, "vllm"]["requests a minute"]
    for server, said in [("minstate", "minstate computes {} %"), ("vllm", "blocks of 128 tokens, {} %")]:
        mine = [row for (_, name), row in rows.items() if name == server]
        share = 100 * sum(row["computed"] for row in mine) / sum(row["prompt"] for row in mine)
        assert said.format(f"{share:.0f}") in " ".join(text.split())


def test_results_say_how_they_were_measured():
    for path in (ROOT / "data" / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert {"command", "date", "machine", "rows"} <= record.keys(), path.name
        assert record["command"].startswith("python -m minstate.lab.") and "thread" in record["machine"]


def test_what_is_searched_for_is_found():
    text = "3.6 × faster, 27 ms, 5 µs, 1.5 s, 26.5 GB/s, 300 tokens/s; but 3072 × 576, 30 `×` 14 and 40 tokens are none"
    assert len(SPEED.findall(text)) == 6
