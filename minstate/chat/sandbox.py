"""Where chat templates run: programs of strangers, which must not use this machine up.

[jinja2's sandbox](https://jinja.palletsprojects.com/en/stable/sandbox/), as transformers sets it up, keeps a template
from files and from Python's internals. `Sandbox` also counts. Each turn of a loop, call, filter, operator, slice and
literal is a step, and is charged the characters that it writes; an item of a list counts as 8. What can write a
multiple of its input is charged before it does. A template that takes more than `STEPS` steps, `SIZE` characters or
`SECONDS` of its thread's time is stopped, and one that is longer than `SOURCE` is not compiled.

Some things remain unbounded. The time is looked at between steps, and one step may take long if it compares or sorts
nested lists that are nearly as large as `SIZE`. A character takes up to 4 bytes of memory, and an item up to 100.
"""

import json
import re
import threading
import time
from collections.abc import Collection, Mapping
from functools import lru_cache, partial, wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

SOURCE, STEPS, SIZE, SECONDS = 1 << 18, 10_000_000, 1 << 29, 20
# Filters and methods that may write a multiple of what they are given, or all that a value holds.
GROWING = set(
    "replace join indent tojson center ljust rjust zfill expandtabs wordwrap batch slice translate to_bytes string "  # noqa: SIM905
    "upper lower title capitalize trim e escape forceescape safe urlencode urlize pprint xmlattr striptags wordcount "
    "sort dictsort groupby unique min max raise_exception".split()
)
WIDE = re.compile(r"(%|:.?)[-+ #<>=^.0]*(\d{3}|\*)|\{[^{}]*\{")  # a width of three digits, or one that is computed


class Stopped(SecurityError):
    """A template took too many steps, characters or seconds."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates, and counts what they do. For one thread."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self):
        super().__init__()
        vars(self).update(vars(_compile_jinja_template("").environment))  # with the filters and names of transformers
        self.optimized, self.finalize = False, pass_context(lambda _, value: self.charge(value))
        meters = {"charge": self.charge, "charge_length": partial(self.charge, deep=False), "counted": self.counted}
        # `sum` of lists takes the square of their number, and `lipsum` writes any length; no known template needs them.
        self.filters = {name: self._metered(name, run) for name, run in self.filters.items() if name != "sum"} | meters
        self.tests = self.tests | {name: self._metered(name, self.tests[name]) for name in ("lower", "upper")}
        self.globals = {name: value for name, value in self.globals.items() if name != "lipsum"}
        self.begin()

    def begin(self) -> None:
        """Count from the beginning."""
        self.steps, self.size, self.deadline = STEPS, SIZE, time.thread_time() + SECONDS

    def spend(self, size: int = 0) -> None:
        """Charge a step and the characters that it writes. Raises `Stopped` if there were too many."""
        self.steps -= 1
        self.size -= size
        if self.steps < 0 or self.size < 0 or (not self.steps & 63 and time.thread_time() > self.deadline):
            raise Stopped(f"stopped after {STEPS:,} steps, {SIZE:,} characters or {SECONDS} seconds")

    def charge(self, value: Any, deep: bool = True) -> Any:
        """The value; charged by its length, and with all that it holds if `deep`: it may hold one thing many times."""
        if isinstance(value, str):
            self.spend(len(value))
            return value
        held = value._Namespace__attrs if isinstance(value, Namespace) else value
        self.spend(8 * len(held) if isinstance(held, Collection) else 8)
        if deep and isinstance(held, Collection) and not isinstance(held, bytes):
            for item in [*held, *held.values()] if isinstance(held, Mapping) else held:
                self.charge(item)
        return value

    def weigh(self, value: Any) -> int:
        """What `charge` charges."""
        before = self.size
        self.charge(value)
        return before - self.size

    def counted(self, values):
        """The values, for a loop: a step each."""
        for value in values:
            self.spend()
            yield value

    def call(self, context, called, /, *args, **kwargs) -> Any:
        """Call a function, a macro or a method."""
        name, value = getattr(called, "__name__", ""), getattr(getattr(called, "__wrapped__", called), "__self__", None)
        if name == "join" or isinstance(called, LoopContext):  # a recursive loop is called with its next values
            args = [self.counted(values) if not name else list(values) for values in args]
        return self._run(name, value, partial(super().call, context, called), args, kwargs)

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        """Add, multiply, raise to a power, or take the remainder."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*" and isinstance(left, str) and isinstance(right, int):
            self.spend(len(left) * max(0, right))
        elif numbers and (abs(left) >= 1 << 64 or abs(right) >= (64 if operator == "**" else 1 << 64)):
            raise SecurityError(f"{left:.3g} {operator} {right:.3g} may be large")
        elif not numbers and (operator != "+" or not isinstance(left, str | list)):
            raise SecurityError(f"{type(left).__name__} {operator} {type(right).__name__} may be large")
        return self.charge(super().call_binop(context, operator, left, right), deep=False)

    def concat(self, pieces) -> str:
        """Join what a macro, a block or the whole template writes."""
        pieces = list(pieces)
        self.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def _metered(self, name: str, run):
        at = int(hasattr(run, "jinja_pass_arg"))  # such a filter is given the context, or the like, first

        @wraps(run)
        def metered(*args, **kwargs):
            value = list(args[at]) if name == "join" else args[at]
            return self._run(name, value, partial(run, *args[:at], value), args[at + 1 :], kwargs)

        return metered

    def _run(self, name: str, value: Any, function, args, kwargs) -> Any:
        """Call a filter or a method of `value`; charge what it may write, and what it has written."""
        given = [*args[name == "replace" :], *kwargs.values()]  # what is replaced is not written
        if name in ("format", "format_map"):
            if WIDE.search(str(value)):
                raise SecurityError(f"the format {value[:80]!r} may be wide")
            self.spend(len(value) * self.weigh(given))
        elif name in GROWING and (args or kwargs or not isinstance(value, str)):
            most = max((one if isinstance(one, int) else self.weigh(one) for one in given), default=0)
            self.spend((1 + self.weigh(value)) * (1 + max(0, most)))
        return self.charge(function(*args, **kwargs), deep=False)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meters().visit(super()._parse(source, name, filename))


class _Meters(NodeTransformer):
    """Puts filters that count around what jinja2's sandbox is not asked about."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "join")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "charge_length") if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node) -> nodes.Node:
        self.generic_visit(node)
        is_const = all(isinstance(item, nodes.Const) for item in node.iter_child_nodes())
        return node if is_const or getattr(node, "ctx", "load") != "load" else _filtered(node, "charge")

    visit_List = visit_Dict = visit_Tuple


def _filtered(node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@lru_cache(maxsize=32)
def _compiled(source: str, _thread: int) -> tuple[Sandbox, Any]:
    if len(source) > SOURCE:
        raise Stopped(f"it has {len(source):,} characters; at most {SOURCE:,} are compiled")
    return (sandbox := Sandbox()), sandbox.from_string(source)


def render(tokenizer, messages, tools=(), *, reply: bool = False, variables=None) -> str:
    """What the tokenizer's chat template writes, as `apply_chat_template` of transformers has it.

    A template may raise anything. Raises `Stopped` if it took too much.
    """
    if not messages:
        raise ValueError("there are no messages")
    tools = list(tools) or None
    sandbox, template = _compiled(tokenizer.get_chat_template(tools=tools), threading.get_ident())
    sandbox.begin()
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in messages:
        if "reasoning_content" in message:
            message.setdefault("thinking", message["reasoning_content"])
    plain = json.loads(json.dumps(variables or {}, default=lambda value: f"<{type(value).__name__}>"))
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": reply}
    return template.render({**given, **tokenizer.special_tokens_map, **plain})
