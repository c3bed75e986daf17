"""What the package does beyond the student's engine: in which files, in how many lines, and which notebook tells."""

from IPython.display import Markdown

from minstate.lab.paths import PACKAGE

# Files by their names below `minstate/`; all files of the core and the kernels are there, each once.
BUYS = {
    "attention reads pages where they lie, in parts that are merged; your `extend` copies all K and V in each pass": (
        "attention ragged_batch model_runner linear", "02_paged_kv"),
    "forks and rollbacks: a page that two sessions hold is copied before one of them writes into it": (
        "paged_kv sequence", "02_paged_kv"),
    "a session has messages, streams, marks and limits; a turn that fails leaves it as it was": (
        "session turn turn_input token_stream engine overflow arguments errors", "03_the_delta_turn"),
    "reuse that is exact to the token, also inside a page; when the pool is full, eviction instead of `MemoryError`": (
        "radix_tree radix_node ranked_queue prefix_cache invariants", "04_the_radix_tree"),
    "templates of many families; what users and tools write can never act as a control token": (
        "chat/template chat/conversation chat/content chat/transcript chat/messages chat/drift chat/sandbox "
        "chat/shortening chat/probing chat/families chat/dialect chat/spelling chat/json_calls chat/tool_calls",
        "05_templates_and_drift"),
    "drafts only while they pay, found in constant time, and from other sessions too": (
        "speculation prompt_lookup draft_budget", "06_speculation"),
    "tool calls that always fit their schema; tokens without an alternative cost no pass": (
        "chat/grammar chat/call_grammar chat/schema chat/keywords chat/finite", "06_speculation"),
    "sampling with noise that no batch and no draft changes": ("sampling output parallel_sampling", "06_speculation"),
    "turns that arrive at any time: admission, long prompts in chunks, preemption": (
        "scheduler request engine_core", "07_many_agents"),
    "host memory and a disk below the pool; keys and values in 8 bits": (
        "tiers disk_store kv_int8", "08_pressure_and_tiers"),
    "speed: kernels in C++ and Triton": ("kernel_layers cpu gpu kernels/", "09_one_kernel_two_machines"),
    "many families of models, read from files that a stranger made": (
        "model model_config model_families rotary weights model_files config_values memory",
        "01_prefill_decode_and_the_kv_cache"),
    "sessions in signed files; Ctrl-C and faults in the middle of a turn": ("persistence signing guard", "13_trust"),
}  # fmt: skip


def lines_of(name: str) -> int:
    """Lines of a file of the core, or of all kernels."""
    paths = [PACKAGE / f"{name}.py"]
    if name.endswith("/"):
        paths = [path for path in (PACKAGE / name).rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    return sum(len(path.read_text().splitlines()) for path in paths)


def what_the_lines_buy() -> Markdown:
    """A table in Markdown: what the package does beyond the student's file, in which files, with how many lines."""
    rows = ["| what | lines | files | notebook |", "| --- | --: | --- | --- |"]
    for what, (names, notebook) in BUYS.items():
        each = names.split()
        links = [f"[`{name}`](../minstate/{name if name.endswith('/') else f'{name}.py'})" for name in each]
        shown = ", ".join(links[:4]) + (f" and {len(links) - 4} more" if len(links) > 4 else "")
        rows.append(f"| {what} | {sum(map(lines_of, each)):,} | {shown} | [{notebook[:2]}]({notebook}.ipynb) |")
    total = sum(lines_of(name) for names, _ in BUYS.values() for name in names.split())
    return Markdown("\n".join([*rows, f"| **all** | **{total:,}** | | |"]))
