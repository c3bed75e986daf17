"""What a reply may be, in llguidance's dialect of Lark: text, thoughts, and calls in a model's own dialect.

A control token is not the text that it is spelt like. So pieces of a dialect become sequences of literals and tokens,
`<[5]>` for the token 5. `TEXT` never holds a control token; `others` are those that may stand between two texts.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from minstate.chat.dialect import ID, INDEX, NEXT_ID, Dialect
from minstate.chat.finite import target_of
from minstate.chat.keywords import ENFORCED
from minstate.chat.schema import arguments_grammar, value_grammar, with_own_types
from minstate.chat.spelling import Literals, Tagged
from minstate.chat.tool_calls import misfit
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
            names = dict.fromkeys([*schema.get("properties", ()), *schema.get("required", ())], "text")
            self._require_readable(name, names, {})
        except UnsupportedSchema as error:
            named = f"tool {name!r}"
            return str(error) if named in str(error) else f"{named} cannot be enforced: {error}"
        return ""

    def _require_readable(self, name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
        """Raises `UnsupportedSchema` if names or constants could be taken for the marks that stand around them."""
        written = self.dialect.write([{"name": name, "arguments": arguments}])
        calls = self.dialect.read(written, [{"name": name, "parameters": schema}]).calls
        if [(call.name, call.arguments) for call in calls] != [(name, arguments)]:
            raise UnsupportedSchema(f"this model's calls could not be read again: {name!r:.80} with {arguments!r:.80}")

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
        before, mark = (TEXT, self.mark) if self.dialect.is_marked else (r"/\s*/", self.dialect.open.strip())
        rules["PLAIN"] = f"{TEXT} & ~({before} {_quoted(mark)} {TEXT})" if mark else TEXT
        if not rules["other"]:
            rules |= {"text": "TEXT", "plain": "PLAIN"}
        if self._opens_with_atom:  # in letters, a reader would take its mark for a call too
            rules["text"] = rules["plain"]
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
        return "\n".join(f"{name}: {rule}" for name, rule in rules.items())

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
        value = arguments_grammar(name, schema or {}, separators)
        return {rule: f"{_quoted(spelt)} {self._literal(arguments.before)} {value}"}

    def _tagged(self, rule: str, name: str, schema: Mapping[str, Any] | None, tagged: Tagged) -> dict[str, str]:
        """Arguments one after the other, in the order of the schema; what need not be there may be left out."""
        if schema is None:
            name_of_key = {f"{rule.upper()}_KEY": r"/[\w.-]+/"}
            value = self._tagged_values(f"{rule}_value", {}, {}, tagged)
            some = f"{rule.upper()}_KEY {rule}_value"
            both = f"{self._literal(tagged.first)} {some} ({self._literal(tagged.separator)} {some})*"
            return {rule: f"{_quoted(name)} ({both} | {self._literal(tagged.none)})", **name_of_key, **value}
        schema, required = with_own_types(schema), schema.get("required", ())
        if beside := next((key for key in schema if key in ENFORCED and key not in OBJECT), None):
            raise UnsupportedSchema(f"this model writes arguments one by one, so {beside} cannot be enforced")
        listed, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        properties = [*listed.items(), *((key, others) for key in required if key not in listed)]
        rules = {rule: f"{_quoted(name)} {rule}_0"}
        rules[f"{rule}_{len(properties)}"] = self._literal(tagged.none)
        rules[f"{rule}_{len(properties)}_more"] = ""
        for place, (key, value) in enumerate(properties):
            choices = self._tagged_values(f"{rule}_value_{place}", value, schema, tagged)
            rules |= choices
            for begun in ("", "_more"):
                before = f"{self._literal(tagged.separator if begun else tagged.first)} {_quoted(key)}"
                rules[f"{rule}_{place}{begun}"] = f"{before} {rule}_value_{place} {rule}_{place + 1}_more"
                if key not in required:
                    rules[f"{rule}_{place}{begun}"] += f" | {rule}_{place + 1}{begun}"
        return rules

    def _tagged_values(self, rule: str, value: Any, root: Mapping[str, Any], tagged: Tagged) -> dict[str, str]:
        """The rules for a value with the marks around it: one rule for each type that it may have."""
        rules, choices = {}, []
        for place, schema in enumerate(alternatives(value, root)):
            kind = schema.get("type", "string")
            if "const" in schema:
                if spelt := self._pieces.search(json.dumps(schema["const"], ensure_ascii=False)):
                    raise UnsupportedSchema(f"{schema['const']!r:.80} holds {spelt[0]!r}, which controls this model")
                self._require_readable("f", {"key": schema["const"]}, {"properties": {"key": value}})
                choices.append(self._literal(tagged.write_value(schema["const"])))
            elif kind != "string" or (tagged.literals and tagged.literals.escapes):
                whole = {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **schema}
                spelt = literal_grammar(whole, tagged.literals) if tagged.literals else value_grammar(whole)
                choices.append(f"{self._literal(tagged.to_other)} {spelt} {self._literal(tagged.after_other)}")
            else:
                if limit := next((key for key in STRING_LIMITS if key in schema), None):
                    raise UnsupportedSchema(f"this model writes strings as they are, so {limit} cannot be enforced")
                quote = tagged.literals.quotes[0] if tagged.literals else ""
                after = quote + tagged.after_text
                stop = after.rstrip() or after
                name = f"{rule}_{place}"
                is_atom = self._pieces.match(after.lstrip())
                never = stop if is_atom else stop.strip() or stop  # in the string, for which a reader may end there
                rules[name.upper()] = f"{TEXT} & ~({TEXT} {_quoted(never)} {TEXT})"
                text = f"{name.upper()} {self._literal(after)}" if is_atom else f"{name} {_quoted(after[len(stop) :])}"
                rules[f"{name}[lazy]"] = f"{name.upper()} {_quoted(stop)}"
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

    def _tokens(self, ids: frozenset[int] | set[int]) -> str:
        """Any one of some tokens; "" if there are none."""
        return f"<[{','.join(map(str, sorted(ids)))}]>" if ids else ""

    def _literal(self, text: str) -> str:
        """A piece of the dialect as literals and tokens."""
        parts, at = [], 0
        for found in self._pieces.finditer(text):
            if found.start() > at:
                parts.append(_quoted(text[at : found.start()]))
            parts.append(IDS[found[0]] if found[0] in IDS else f"<[{self.atoms[found[0]]}]>")
            at = found.end()
        return " ".join([*parts, _quoted(text[at:])] if at < len(text) else parts)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


STRING_LIMITS = ("pattern", "format", "minLength", "maxLength")
COMBINED = ("allOf", "oneOf", "not")
OBJECT = ("type", "properties", "required", "additionalProperties")


def alternatives(value: Any, root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """A schema as several, each of one type or of one constant. Raises `UnsupportedSchema`."""
    value = {} if value is True else value
    if not isinstance(value, Mapping) or depth > 8:
        raise UnsupportedSchema(f"this model writes arguments one by one, which cannot be done for {value!r:.80}")
    several = [key for key in ("$ref", "anyOf") if key in value and len(value.keys() & ENFORCED) > 1]
    if refused := next((key for key in (*COMBINED, *several) if key in value), None):
        raise UnsupportedSchema(f"this model writes arguments one by one, so {refused} cannot be enforced: write anyOf")
    if "$ref" in value:
        return alternatives(target_of("$", value["$ref"], root), root, depth + 1)
    if "anyOf" in value:
        return [each for inner in value["anyOf"] for each in alternatives(inner, root, depth + 1)]
    if "enum" in value or "const" in value:
        return [{"const": each} for each in value.get("enum", [value.get("const")]) if not misfit(each, value, 0)]
    kinds = value.get("type", "string")
    return [{**value, "type": kind} for kind in ([kinds] if isinstance(kinds, str) else kinds)]


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
