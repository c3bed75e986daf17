"""Where the files, classes and functions that a text names are defined."""

import ast
import builtins
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("minstate", "tests", "notebooks", "docs", "peers", "site", "data/results")
KINDS = {".py", ".cpp", ".h", ".md", ".ipynb", ".json", ".txt", ".toml", ".yml", ".html", ".js", ".css"}
HIDDEN = {"solutions", "cases", "__pycache__", ".ipynb_checkpoints"}
CALL = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(.*\))?", flags=re.DOTALL)
FILE = re.compile(r"([\w./-]*\w\.(?:py|cpp|h|md|ipynb|toml|yml|txt|json)|Makefile)(?:::(\w+)(?:\[.*\])?)?")
PLAIN = {*dir(builtins), *keyword.kwlist, "main"}  # names that are hardly ever meant as a function of the package


@dataclass(frozen=True)
class Place:
    """A file of the repository, relative to its root, and the line where a definition begins (None: all of it)."""

    path: Path
    line: int | None = None


def is_public(path: Path) -> bool:
    """Whether the site may show the file or folder `path`, relative to the root: solutions of exercises stay away."""
    return not HIDDEN & set(path.parts) and not path.stem.endswith("_solution")


class Names:
    """All files below `root` that the site may show, and all definitions of the package `minstate`."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        found = [path for folder in FOLDERS for path in sorted((self.root / folder).rglob("*")) if path.suffix in KINDS]
        found += [path for path in sorted(self.root.iterdir()) if path.is_file()]
        self.files = [path for each in found if is_public(path := each.relative_to(self.root))]
        self.known = set(self.files)
        self.modules = {path.name for path in self.files if path.parts[0] == "minstate"}
        self.definitions: dict[str, list[Place]] = {}
        for path in self.files:
            if path.suffix == ".py" and path.parts[0] == "minstate":
                for name, line in definitions(self.root / path):
                    self.definitions.setdefault(name, []).append(Place(path, line))

    def find(self, text: str, exclude: frozenset[str] = frozenset()) -> Place | None:
        """The place that `text` names, as in `session.py`, `Session.send`, `allot` or `engine.check()`.

        None if there is none, or if several have an equal claim. A bare name in `exclude` is not looked up.
        """
        if file := FILE.fullmatch(text):
            return self._file(*file.groups())
        if text.endswith("/") and len(Path(text).parts):
            return self._folder(text)
        if module := self._module(text):
            return module
        if not (call := CALL.fullmatch(text)):
            return None
        name, called = call[1].removeprefix("minstate."), call[2]
        first, dot, rest = name.partition(".")
        if dot:
            return self._best(self.definitions.get(name) or self.definitions.get(first.capitalize() + dot + rest, []))
        if name in exclude or name in PLAIN or len(name) < 4 or f"{name}.py" in self.modules:
            return None
        places = self.definitions.get(name, [])
        telling = called or "_" in name or name[0].isupper()
        return self._best(
            places if telling else [each for each in places if each.path.parts[1] not in ("lab", "serve")]
        )

    def _module(self, text: str) -> Place | None:
        """A file of the core without its ending, as in `radix_tree` and `chat/drift`. One word may mean anything."""
        path = Path("minstate", f"{text}.py")
        return Place(path) if re.fullmatch(r"\w+(?:/\w+|_\w+)", text) and path in self.known else None

    def _file(self, name: str, function: str | None) -> Place | None:
        """The file whose path ends with `name`; of `name::function`, the line of the function as well."""
        parts = Path(name).parts
        place = self._best([Place(path) for path in self.files if path.parts[-len(parts) :] == parts])
        if place and function and place.path.suffix == ".py":
            line = dict(definitions(self.root / place.path)).get(function)
            return Place(place.path, line) if line else None
        return place

    def _folder(self, name: str) -> Place | None:
        parts = Path(name).parts
        folders = {parent for path in self.files for parent in path.parents if parent.parts[-len(parts) :] == parts}
        return self._best([Place(path) for path in folders])

    def _best(self, places: list[Place]) -> Place | None:
        """The one in the innermost part of the project: the core, what serves it, the lab, anything else."""

        def distance(place: Place) -> tuple[int, int]:
            parts = place.path.parts
            order = ["serve", "lab"].index(parts[1]) + 1 if parts[1:2] in [("serve",), ("lab",)] else 0
            return (order if parts[0] == "minstate" else 3, len(parts))

        ranked = sorted(places, key=distance)
        tied = len(ranked) > 1 and distance(ranked[0]) == distance(ranked[1])
        return ranked[0] if ranked and not tied else None


def definitions(path: Path) -> list[tuple[str, int]]:
    """Functions and classes at a file's top, and what is in the classes as `Class.name`, each with its line."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append((node.name, node.lineno))
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.append((f"{node.name}.{each.name}", each.lineno))
                elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    found.append((f"{node.name}.{each.target.id}", each.lineno))
    return list(dict(reversed(found)).items())  # of a property and its setter, the first


def bound_in(code: str) -> set[str]:
    """The names that a program gives a value of its own; a text beside it then means these."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:  # a cell with a magic command
        return set()
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return stored | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
