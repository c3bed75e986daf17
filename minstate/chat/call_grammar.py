"""What a reply may be, in llguidance's dialect of Lark: text, thoughts, and calls in a model's own dialect.

A control token is not the text that it is spelt like. So pieces of a dialect become sequences of literals and tokens,
`<[5]>` for the token 5. `TEXT` never holds a control token; `others` are those that may stand between two texts.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from minstate.chat.dialect import ID, INDEX, NEXT_ID, Dialect
from minstate.chat.keywords import TYPES
from minstate.chat.schema import any_object, arguments_grammar, value_grammar
from minstate.chat.spelling import Literals, Tagged
from minstate.errors import UnsupportedSchema

TEXT = r"/(?s:.*)/"
Calls = Mapping[str, Mapping[str, Any] | None]  # schemas by the names of tools; None leaves a tool's arguments free
IDS = {ID: "CALL_ID", NEXT_ID: "CALL_ID", INDEX: "NUMBER"}


class CallGrammar:
    """Writes grammars for one dialect.

    atoms   the control tokens that the parser takes for more than their text, by spelling
    spoken  those that a reply may have anywhere
    """

    def __init__(self, dialect: Dialect, atoms: Mapping[str, int], spoken: frozenset[int]):
        self.dialect, self.atoms, self.spoken = dialect, atoms, spoken
        by_length = sorted(atoms, key=len, reverse=True)
        self._pieces = re.compile("|".join(map(re.escape, [*by_length, *IDS])))
        opens = dialect.open.lstrip()
        first = self._pieces.match(opens)
        mark = re.match(r"\S+?[>\]]|\S*", opens)
        self.mark = first[0] if first else mark[0] if mark else ""  # by which a call is known
        self._opens_with_atom = self.mark in atoms

    def free(self, calls: Calls, *, thinking: bool, parallel: bool | None) -> str:
        """Text in which calls that begin must be calls of these tools."""
        rest, following = self.dialect.open.lstrip()[len(self.mark) :], self.dialect.next or ""
        # Where another call may follow on text, calls that follow on each other are no other case.
        together = parallel is not False and not (self.dialect.is_marked and following.startswith(self.dialect.close))
        body = f"{self._literal(rest)} {self._body(calls, together)}"
        if not self.dialect.is_marked:
            whole = f"{self._literal(self.dialect.open.lstrip())} {self._body(calls, together)}"
            start = f"{whole} | plain"
        elif self._opens_with_atom:
            call = f"{self._literal(self.mark)} {body}"
            start = f"text ({call})?" if parallel is False else f"text ({call} text)*"
        else:
            between = "(TEXT other)* " if self._others() else ""
            start = f"{between}opened {body} | text" if parallel is False else f"({between}opened {body})* text"
        return self._grammar(f"({start})", calls, thinking)

    def required(self, calls: Calls, *, thinking: bool, parallel: bool | None) -> str:
        """Nothing but a call of one of these tools; or several, if `parallel`."""
        body = self._body(calls, bool(parallel))
        return self._grammar(f"{self._literal(self.dialect.open.lstrip())} {body}", calls, thinking)

    def problem_with(self, name: str, schema: Mapping[str, Any]) -> str:
        """Why the arguments of a tool cannot be enforced; "" if they can."""
        try:
            arguments_grammar(name, schema)
            self._call("call", name, schema)
        except UnsupportedSchema as error:
            named = f"tool {name!r}"
            return str(error) if named in str(error) else f"{named} cannot be enforced: {error}"
        return ""

    def none(self, *, thinking: bool) -> str:
        """Text without calls."""
        return self._grammar("plain", {}, thinking)

    def value(self, schema: Mapping[str, Any], *, thinking: bool) -> str:
        """A JSON value that fits a schema, with what the family writes in front of an answer."""
        return self._grammar(f"{self._literal(self.dialect.before_answer)} {value_grammar(schema)}", {}, thinking)

    def _grammar(self, start: str, calls: Calls, thinking: bool) -> str:
        rules = {"start": start, "TEXT": TEXT, "text": "TEXT (other TEXT)*", "other": self._others()}
        rules["opened[lazy]"] = f"TEXT {_quoted(self.mark)}"
        rules["CALL_ID"], rules["NUMBER"] = "/[A-Za-z0-9]{9}/", "/[0-9]{1,3}/"
        rules["plain"] = "PLAIN (other TEXT)*"
        # A call without a mark is a whole reply, so only a reply's beginning tells it from text.
        mark = re.escape(self.mark if self.dialect.is_marked else self.dialect.open.strip())
        before = "(?s:.*)" if self.dialect.is_marked else r"\s*"
        rules["PLAIN"] = TEXT if self._opens_with_atom or not mark else f"{TEXT} & ~/{before}{mark}(?s:.*)/"
        if not rules["other"]:
            rules |= {"text": "TEXT", "plain": "PLAIN"}
        if self.dialect.frame and not self.dialect.open.strip():  # what is no call begins with this
            rules["plain"] = f"{_quoted(self.dialect.frame[0])} text"
        if thoughts := self._thoughts(thinking):
            rules["start"] = f"{thoughts} {start}"
            inside = self._tokens(self.spoken - {self.atoms.get(self._think()[1])})
            rules["thought"] = f"TEXT ({inside} TEXT)*" if inside else "TEXT"
            rules["thought_end[lazy]"] = f"TEXT {_quoted(self._think()[1])}"
            rules["GAP"] = r"/\n{0,2}/"
        for place, (name, schema) in enumerate(calls.items()):
            rules |= self._call(f"call_{place}", name, schema)
        return "\n".join(f"{name}: {rule}" for name, rule in _reachable(rules).items())

    def _body(self, calls: Calls, several: bool) -> str:
        """From the first name to the end of the last call."""
        which = "(" + " | ".join(f"call_{place}" for place in range(len(calls))) + ")"
        if several and self.dialect.next is not None:
            which = f"{which} ({self._literal(self.dialect.next)} {which})*"
        return f"{which} {self._literal(self.dialect.close)}"

    def _call(self, rule: str, name: str, schema: Mapping[str, Any] | None) -> dict[str, str]:
        """The rules for a name and its arguments."""
        arguments = self.dialect.arguments
        if isinstance(arguments, Tagged):
            return self._tagged(rule, name, schema, arguments)
        spelt = json.dumps(name, ensure_ascii=False)[1:-1] if arguments.begins is not None else name
        separators = None if arguments.indent else arguments.separators
        value = any_object(separators) if schema is None else arguments_grammar(name, schema, separators)
        return {rule: f"{self._literal(spelt + arguments.before)} {value}"}

    def _tagged(self, rule: str, name: str, schema: Mapping[str, Any] | None, tagged: Tagged) -> dict[str, str]:
        """Arguments one after the other, in the order of the schema; what need not be there may be left out."""
        if schema is None:
            name_of_key = {f"{rule.upper()}_KEY": r"/[\w.-]+/"}
            value = self._tagged_values(f"{rule}_value", {}, {}, tagged)
            some = f"{rule.upper()}_KEY {rule}_value"
            both = f"{self._literal(tagged.first)} {some} ({self._literal(tagged.separator)} {some})*"
            return {rule: f"{self._literal(name)} ({both} | {self._literal(tagged.none)})", **name_of_key, **value}
        properties, required = list(schema.get("properties", {}).items()), schema.get("required", ())
        rules = {rule: f"{self._literal(name)} {rule}_0"}
        rules[f"{rule}_{len(properties)}"] = self._literal(tagged.none)
        rules[f"{rule}_{len(properties)}_more"] = ""
        for place, (key, value) in enumerate(properties):
            choices = self._tagged_values(f"{rule}_value_{place}", value, schema, tagged)
            rules |= choices
            for begun in ("", "_more"):
                before = self._literal((tagged.separator if begun else tagged.first) + key)
                rules[f"{rule}_{place}{begun}"] = f"{before} {rule}_value_{place} {rule}_{place + 1}_more"
                if key not in required:
                    rules[f"{rule}_{place}{begun}"] += f" | {rule}_{place + 1}{begun}"
        return rules

    def _tagged_values(self, rule: str, value: Any, root: Mapping[str, Any], tagged: Tagged) -> dict[str, str]:
        """The rules for a value with the marks around it: one rule for each type that it may have."""
        rules, choices = {}, []
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        for place, schema in enumerate(alternatives(value, root)):
            kind = schema.get("type", "string")
            if "const" in schema:
                choices.append(self._literal(tagged.write_value(schema["const"])))
            elif kind != "string" or (tagged.literals and tagged.literals.escapes):
                spelt = (
                    literal_grammar(schema, tagged.literals)
                    if tagged.literals
                    else value_grammar({**definitions, **schema})
                )
                choices.append(f"{self._literal(tagged.to_other)} {spelt} {self._literal(tagged.after_other)}")
            else:
                require_plain_string(schema)
                quote = tagged.literals.quotes[0] if tagged.literals else ""
                after = quote + tagged.after_text
                stop = after.rstrip() or after
                name = f"{rule}_{place}"
                is_atom = self._pieces.match(after.lstrip())
                text = f"TEXT {self._literal(after)}" if is_atom else f"{name} {self._literal(after[len(stop) :])}"
                rules[f"{name}[lazy]"] = f"TEXT {_quoted(stop)}"
                choices.append(f"{self._literal(tagged.to_text + quote)} {text}")
        return {**rules, rule: " | ".join(choices)}

    def _thoughts(self, thinking: bool) -> str:
        """Thoughts in front of a reply: they must end if the prompt has begun them, else they may be there."""
        if not self.dialect.think:
            return ""
        opens, closes = self._think()
        inner = f"thought {self._literal(closes)}" if closes in self.atoms else "thought_end"
        inner += f" {self._literal(self.dialect.behind_thoughts) or 'GAP'}"
        return inner if thinking else f"({self._literal(opens)} {inner})?"

    def _think(self) -> tuple[str, str]:
        opens, closes = self.dialect.think or ("", "")
        return opens.strip(), closes.strip()

    def _others(self) -> str:
        """Control tokens that may stand in a text, since they begin neither a call nor thoughts."""
        begin = {self.atoms[mark] for mark in (self.mark, self._think()[0]) if mark in self.atoms}
        return self._tokens(self.spoken - begin)

    def _tokens(self, ids: Iterable[int]) -> str:
        """Any one of some tokens; "" if there are none."""
        runs: list[list[int]] = []
        for token in sorted(ids):
            if runs and token == runs[-1][1] + 1:
                runs[-1][1] = token
            else:
                runs.append([token, token])
        return f"<[{','.join(f'{first}-{last}' for first, last in runs)}]>" if runs else ""

    def _literal(self, text: str) -> str:
        """A piece of the dialect as literals and tokens."""
        parts, at = [], 0
        for found in self._pieces.finditer(text):
            if found.start() > at:
                parts.append(_quoted(text[at : found.start()]))
            parts.append(IDS[found[0]] if found[0] in IDS else f"<[{self.atoms[found[0]]}]>")
            at = found.end()
        return " ".join([*parts, _quoted(text[at:])] if at < len(text) else parts)


def _reachable(rules: Mapping[str, str]) -> dict[str, str]:
    """The rules that `start` leads to."""
    names = {name.partition("[")[0]: name for name in rules}
    found, waiting = [], ["start"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            rule = re.sub(r'"(?:\\.|[^"\\])*"', "", rules[names[name]])
            waiting += [word for word in re.findall(r"[A-Za-z_]\w*", rule) if word in names]
    return {names[name]: rules[names[name]] for name in found}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


STRING_LIMITS = ("pattern", "format", "minLength", "maxLength")
COMBINED = ("allOf", "oneOf", "not")


def alternatives(value: Any, root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """A schema as several, each of one type or of one constant. Raises `UnsupportedSchema`."""
    if not isinstance(value, Mapping) or depth > 8:
        raise UnsupportedSchema(f"this model writes arguments one by one, which cannot be done for {value!r:.80}")
    if refused := next((keyword for keyword in COMBINED if keyword in value), None):
        raise UnsupportedSchema(f"this model writes arguments one by one, so {refused} cannot be enforced: write anyOf")
    if "$ref" in value:
        inner: Any = root
        for part in str(value["$ref"]).lstrip("#/").split("/"):
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        return alternatives(inner, root, depth + 1)
    if "anyOf" in value:
        return [each for inner in value["anyOf"] for each in alternatives(inner, root, depth + 1)]
    if "enum" in value or "const" in value:
        return [{"const": each} for each in value.get("enum", [value.get("const")])]
    kinds = value.get("type", "string")
    kinds = [TYPES.get(kind.lower(), kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return [{**value, "type": kind or "string"} for kind in kinds]


def require_plain_string(schema: Mapping[str, Any]) -> None:
    """Raises `UnsupportedSchema` if a string that stands between tags is limited."""
    if limit := next((keyword for keyword in STRING_LIMITS if keyword in schema), None):
        raise UnsupportedSchema(f"this model writes strings as they are, so {limit} cannot be enforced: leave it out")


def literal_grammar(schema: Mapping[str, Any], literals: Literals) -> str:
    """A value as a literal. Raises `UnsupportedSchema` for objects."""
    kind = schema.get("type")
    if "const" in schema and literals.escapes:
        return _quoted(literals.write(schema["const"]))
    if kind in ("boolean", "null"):
        meant = (True, False) if kind == "boolean" else (None,)
        return "(" + " | ".join(_quoted(literals.write(value)) for value in meant) + ")"
    if kind == "array" and isinstance(schema.get("items"), Mapping) and not schema.keys() & {"minItems", "maxItems"}:
        item = "(" + " | ".join(literal_grammar(each, literals) for each in alternatives(schema["items"], {})) + ")"
        comma = _quoted(", " if literals.quoted_keys else ",")
        return f'"[" ({item} ({comma} {item})*)? "]"'
    if kind in ("array", "object") or (kind == "string" and not literals.escapes):
        raise UnsupportedSchema(f"this model writes arguments as literals, so a nested {kind} cannot be enforced")
    return value_grammar(schema)
