"""The reference of the public names, from signatures and docstrings. No module is imported."""

import ast
import re
from inspect import cleandoc
from pathlib import Path

PAGES = {  # the page of a module whose names are public, in this order
    "Engine and session": ("engine", "session", "parallel_sampling", "chat.drift"),
    "Turns": ("turn", "sampling", "speculation", "draft_budget"),
    "Errors": ("errors",),
    "The asynchronous engine": ("serve.async_engine", "serve.async_session"),
    "Baselines": ("lab.engines.baselines",),
}
PACKAGES = ("minstate", "minstate.serve", "minstate.lab.engines")  # their `__init__.py` names what is public


def public_names(root: Path) -> dict[str, list[str]]:
    """The public names of each module, in the order in which the packages import them."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        tree = ast.parse((root / Path(*package.split(".")) / "__init__.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minstate."):
                names = found.setdefault(node.module.removeprefix("minstate."), [])
                names += [each.name for each in node.names if each.name[0] != "_"]
    return found


def reference(root: Path) -> dict[str, str]:
    """The pages of the reference as Markdown: title → text. Names of a module that no page lists go to *More*."""
    public, pages = public_names(root), {}
    listed = {module for modules in PAGES.values() for module in modules}
    grouping = PAGES | {"More": tuple(module for module in public if module not in listed)}
    for title, modules in grouping.items():
        texts = [_module(root, module, public[module]) for module in modules if module in public]
        if texts:
            pages[title] = f"# {title}\n\n" + "\n\n".join(texts) + "\n"
    return pages


def _module(root: Path, module: str, names: list[str]) -> str:
    path = Path("minstate", *module.split(".")).with_suffix(".py")
    source = (root / path).read_text(encoding="utf-8")
    nodes = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    found = [nodes[name] for name in names if name in nodes]
    found.sort(key=lambda node: node.lineno)
    head = f"```{{py:currentmodule}} minstate.{module}\n```"
    return "\n\n".join([head, *(_described(node, source.splitlines(), path) for node in found)])


def _described(node: ast.AST, lines: list[str], path: Path) -> str:
    """A heading, and a function or a class with its public members."""
    text = [f"## `{node.name}`\n\n[Source: `{path}`, line {node.lineno}]({path}#L{node.lineno})"]
    if not isinstance(node, ast.ClassDef):
        return "\n\n".join([*text, _entry("function", node.name, node, 6)])
    documented = _docstring(node)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and ast.unparse(each.target)[0] != "_"]
    described = [_field(each, lines) for each in fields if f"\n`{each.target.id}`" not in documented]
    functions = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    members = [_member(each) for each in functions if each.name[0] != "_" and ast.get_docstring(each)]
    init = next((each for each in functions if each.name == "__init__"), None)
    signature = _signature(init) if init else _fields_as_signature(node, fields)
    body = "\n\n".join(filter(None, [documented, *described, *members]))
    return "\n\n".join([*text, f"{'`' * 8}{{py:class}} {node.name}{signature}\n\n{body}\n{'`' * 8}"])


def _fields_as_signature(node: ast.ClassDef, fields: list[ast.AnnAssign]) -> str:
    """How a dataclass is called."""
    if not any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        return ""
    parts = [ast.unparse(each) for each in fields if "field(" not in ast.unparse(each)]
    return f"({', '.join(parts)})"


def _member(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        returned = f"\n:type: {ast.unparse(node.returns)}" if node.returns else ""
        return f"{'`' * 6}{{py:property}} {node.name}{returned}\n\n{_docstring(node)}\n{'`' * 6}"
    kind = (
        "classmethod" if "classmethod" in decorators else "staticmethod" if "staticmethod" in decorators else "method"
    )
    return _entry(kind, node.name, node, 6)


def _entry(kind: str, name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, ticks: int) -> str:
    option = "\n:async:" if isinstance(node, ast.AsyncFunctionDef) else ""
    fence = "`" * ticks
    return f"{fence}{{py:{kind}}} {name}{_signature(node)}{option}\n\n{_docstring(node)}\n{fence}"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`(messages=None, *, token_ids=None) -> Turn`: no `self`, and one line."""
    arguments = re.sub(r"^(?:self|cls)(?:, /)?(?:, |$)", "", ast.unparse(node.args))
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({arguments}){returned}"


def _field(node: ast.AnnAssign, lines: list[str]) -> str:
    """A field of a dataclass, with the comment behind it, or right above it."""
    _, mark, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")
    above, at = [], node.lineno - 2
    while not mark and lines[at].strip().startswith("# "):
        above.insert(0, lines[at].strip().removeprefix("# "))
        at -= 1
    value = "" if node.value is None or "field(" in ast.unparse(node.value) else f"\n:value: {ast.unparse(node.value)}"
    options = f"\n:type: {ast.unparse(node.annotation)}{value}"
    return f"{'`' * 6}{{py:attribute}} {node.target.id}{options}\n\n{comment or ' '.join(above)}\n{'`' * 6}"


def _docstring(node: ast.AST) -> str:
    """The docstring, with its lists of names as definition lists."""
    blocks = cleandoc(ast.get_docstring(node) or "").split("\n\n")
    return "\n\n".join(_definitions(block) or block for block in blocks)


def _definitions(block: str) -> str | None:
    """Lines such as `seed    of the noise`, whose continuations are indented, as Markdown; None for any other block."""
    if not re.match(r"\w+(?:  +\S|\n {4,}\S)", block):
        return None
    items: list[list[str]] = []
    for line in block.splitlines():
        if found := re.fullmatch(r"(\w+)(?:  +(\S.*))?", line):
            items.append([found[1], found[2] or ""])
        elif items and line.startswith("    "):
            items[-1][1] = f"{items[-1][1]} {line.strip()}".strip()
        else:
            return None
    return "\n\n".join(f"`{name}`\n: {meaning}" for name, meaning in items)
