"""A chat template is a stranger's program: it writes what it would elsewhere, and is stopped if it takes too much."""

import threading

import pytest
from templates import STYLES, byte_tokenizer, tokenizer

from minstate import UnsupportedModel
from minstate.chat import sandbox
from minstate.chat.sandbox import Stopped, render
from minstate.chat.template import Template

USER = [{"role": "user", "content": "hello"}]
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}"
MANY = "{% set ns = namespace(x=START) %}{% for i in range(20) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
LONG = "'x' * 1000000"


def growing(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


def many(start: str) -> str:
    """A list `ns.x` that holds `start` a million times."""
    return MANY.replace("START", f"[{start}]")


ENDLESS = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a loop without turns": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for a in [0] recursive %}{{ loop(range(999)) if loop.depth < 5 }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "~": growing("'ab'", "ns.x ~ ns.x"),
    "+": growing("'ab'", "ns.x + ns.x"),
    "lists": growing("[1]", "ns.x + ns.x"),
    "literals": growing("[1]", "[ns.x, ns.x]"),
    "keys": growing("(1,)", "(ns.x, ns.x)") + "{% set y = {ns.x: 1} %}",
    "blocks": growing("'ab'", "ns.x").replace("{% endfor", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor"),
    "results of macros": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + growing("'ab'", "f(ns.x)"),
    "replace": growing("'ab'", "ns.x.replace('a', ns.x)"),
    "replace by a filter": growing("'ab'", "ns.x|replace(new=ns.x, old='a')"),
    "slices": f"{{% set x = {LONG} %}}{{% for i in range(9999) %}}{{% set y = x[i:] %}}{{% endfor %}}",
    "*": "{{ 'x' * 10**10 }}",
    "center": "{{ 'x'|center(10**10) }}",
    "a method": "{{ 'x'.center(10000000000) }}",
    "a method by its name": "{{ ('x'|attr('zfill'))(10000000000) }}",
    "a filter of a filter": "{{ ['x']|map('center', 10000000000)|list }}",
    "a margin": "{{ {'a': [1]}|tojson(indent=10000000000) }}",
    "a separator": f"{{{{ range(100000)|join({LONG}) }}}}",
    "a cycle": "{% for x in [1] %}{{ loop.cycle('a' * 100000000000) }}{% endfor %}",
    "batch": "{{ [1]|batch(10**10, 0)|list }}",
    "a list as text": many(LONG) + "{{ ns.x }}",
    "a list as text by a filter": many(LONG) + "{{ ns.x|lower|length }}",
    "a list as text by ~": many(LONG) + "{{ (ns.x ~ '')|length }}",
    "a list as text by a test": many(LONG) + "{{ ns.x is lower }}",
    "a list joined": many(f"{{'a': {LONG}}}") + "{{ ''.join(ns.x|map(attribute='a'))|length }}",
    "keys of a sort": many(f"{{'a': {LONG}}}") + "{{ ns.x|groupby('a')|length }}",
    "an error's text": many(LONG) + "{{ raise_exception(ns.x) }}",
    "a namespace": many(LONG) + "{{ ns }}",
    "a view": f"{{{{ dict.fromkeys(range(100000), {LONG}).values()|string|length }}}}",
    "a format of many": "{{ ('{0}' * 1000000).format('a' * 100000)|length }}",
    "a long source": "x" * (sandbox.SOURCE + 1),
}  # fmt: skip
TOO_LARGE = {
    "a width": "{{ '%10000000000d'|format(1) }}",
    "a computed width": "{{ '%*d'|format(10000000000, 1) }}",
    "a width in braces": "{{ '{:>10000000000}'.format(1) }}",
    "a computed width in braces": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "%": "{{ '%10000000000d' % 1 }}",
    "lists times": "{{ [1] * 1000000000 }}",
    "squares": growing("10", "ns.x * ns.x"),
    "powers": "{{ 10 ** (10 ** 10) }}",
    "lipsum": "{{ lipsum(n=1000000000) }}",
    "macros in macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "sums of lists": many("[1]") + "{{ ns.x|sum(start=[])|length }}",
}


@pytest.fixture
def little(monkeypatch):
    """Limits that are reached soon. What would take more memory than that at once is refused before it does."""
    for name, value in {"STEPS": 200_000, "SIZE": 1 << 24}.items():
        monkeypatch.setattr(sandbox, name, value)


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_end_is_stopped(case, little):
    with pytest.raises(Stopped):
        render(byte_tokenizer(ENDLESS[case], ["<s>"]), USER)


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_may_be_large_is_refused_by_name(case, little):
    with pytest.raises(Exception, match=r"may be|lipsum|recursion|sum"):
        render(byte_tokenizer(TOO_LARGE[case], ["<s>"]), USER)


def test_a_template_is_stopped_in_any_thread(little):
    caught = []

    def attempt():
        try:
            render(byte_tokenizer(ENDLESS["loops"], ["<s>"]), USER)
        except Stopped as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert caught


def test_a_template_is_stopped_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", -1)
    with pytest.raises(Stopped):
        render(byte_tokenizer("{% for a in range(100) %}{% endfor %}", ["<s>"]), USER)


def test_a_template_that_takes_too_much_is_refused_at_its_first_probe(little, monkeypatch):
    asked = []
    monkeypatch.setattr("minstate.chat.template.render", lambda *a, **k: asked.append(1) or render(*a, **k))
    with pytest.raises(UnsupportedModel, match="takes too much"):
        Template(byte_tokenizer(ENDLESS["loops"], ["<s>"]))
    assert len(asked) == 1


def test_each_rendering_has_the_whole_limit(little):
    one = byte_tokenizer("{% for a in range(90000) %}{% endfor %}", ["<s>"])
    for _ in range(4):
        assert render(one, USER) == ""


CALL = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {"path": "a"}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    *USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "content": "12", "tool_call_id": "call00000", "name": "look"},
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": "more"},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("talk", [USER, TALK])
def test_templates_write_what_they_write_elsewhere(style, talk):
    one, asked = tokenizer(style), {"tools": TOOLS, "add_generation_prompt": True, "tokenize": False}
    try:
        expected = one.apply_chat_template(talk, **asked)
    except Exception:  # noqa: BLE001  a template may raise anything
        with pytest.raises(Exception):  # noqa: B017
            render(one, talk, TOOLS, reply=True)
    else:
        assert render(one, talk, TOOLS, reply=True) == expected


WHAT_LOOPS_KNOW = (
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.previtem is defined }}"
    "{% for k, v in m|dictsort %}{{ k ~ v|upper }}{% else %}-{% endfor %}{% endfor %}{{ messages[::-1][0].role }}"
    "{% for x in [[1, [2]], []] recursive %}{{ x is iterable and loop(x) or x }}{% endfor %}"
    "{% generation %}{{ (1, 2)|join('+') }}{% endgeneration %}"
)


def test_meters_do_not_change_what_a_template_sees():
    one = byte_tokenizer(WHAT_LOOPS_KNOW, ["<s>"])
    assert render(one, TALK[:2]) == one.apply_chat_template(TALK[:2], tokenize=False)


def test_variables_are_plain_values():
    class Odd:
        def touch(self):
            raise AssertionError

    one = byte_tokenizer("{{ odd }}{{ odd.touch() }}", ["<s>"])
    with pytest.raises(Exception, match="touch"):
        render(one, USER, variables={"odd": Odd()})
