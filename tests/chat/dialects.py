"""Chat templates in the dialects of some families, in our own words: only what they write of calls is theirs."""

HEAD = """\
{%- for m in messages %}
{%- if m.role == 'system' %}{{- '<|im_start|>system\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>tool\n' + m.content + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>assistant\n' + (m.content or '') }}
"""
TAIL = """\
{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""


def _calls(each: str, before: str = "", after: str = "", between: str = "") -> str:
    """A loop over calls `c`."""
    separator = f"{{%- if not loop.last %}}{{{{- {between!r} }}}}{{%- endif %}}" if between else ""
    loop = f"{{%- for c in m.tool_calls %}}{{%- set c = c.function %}}{each}{separator}{{%- endfor %}}"
    return f"{{%- if m.tool_calls %}}{{{{- {before!r} }}}}{loop}{{{{- {after!r} }}}}{{%- endif %}}"


def _loop(each: str) -> str:
    return f"{{%- for k, v in c.arguments.items() %}}{each}{{%- endfor %}}"


AS_TEXT = "{{- (v if v is string else v | tojson) }}"
DIALECTS = {
    "JSON between marks": _calls(
        """{{- '\n<tool_call>\n{"name": "' + c.name + '", "arguments": ' }}{{- c.arguments | tojson }}{{- '}\n</tool_call>' }}"""
    ),
    "JSON, bare": _calls("""{{- '{"name": "' + c.name + '", "parameters": ' }}{{- c.arguments | tojson }}{{- '}' }}"""),
    "a JSON list with ids": """{%- if m.tool_calls %}{{- '[TOOL_CALLS][' }}{%- for c in m.tool_calls %}
{{- '{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}{{- ', "id": "' + c.id + '"}' }}
{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}{%- endif %}""",
    "names outside": _calls(
        "{{- '<|call|>' + c.name + '<|sep|>' }}{{- c.arguments | tojson }}{{- '<|end_call|>' }}", "<|calls|>", "<|end_calls|>"
    ),
    "numbered ids that hold the name": """{%- if m.tool_calls %}{{- '<|calls|>' }}{%- for c in m.tool_calls %}
{{- '<|call|>' + c.id + '<|sep|>' }}{{- c.function.arguments | tojson }}{{- '<|end_call|>' }}{%- endfor %}
{{- '<|end_calls|>' }}{%- endif %}""",
    "XML": _calls(
        "{{- '\n<tool_call>\n<function=' + c.name + '>' }}"
        + _loop("{{- '\n<parameter=' + k + '>\n' }}" + AS_TEXT + "{{- '\n</parameter>' }}")
        + "{{- '\n</function>\n</tool_call>' }}"
    ),
    "XML that tells strings": _calls(
        """{{- '<|call|><invoke name="' + c.name + '">' }}"""
        + _loop(
            """{{- '\n<param name="' + k + '" string="' + ('true' if v is string else 'false') + '">' }}"""
            + AS_TEXT
            + "{{- '</param>' }}"
        )
        + "{{- '\n</invoke>' }}"
    ),
    "keys and values": _calls(
        "{{- '\n<tool_call>' + c.name }}"
        + _loop("{{- '\n<arg_key>' + k + '</arg_key>\n<arg_value>' }}" + AS_TEXT + "{{- '</arg_value>' }}")
        + "{{- '\n</tool_call>' }}"
    ),
    "pythonic": _calls(
        "{{- c.name + '(' }}"
        + """{%- for k, v in c.arguments.items() %}{{- k + '=' }}{{- (v | string) if v is boolean else (v | tojson) }}{%- if not loop.last %}{{- ', ' }}{%- endif %}"""
        + "{%- endfor %}{{- ')' }}",
        "<|calls|>[",
        "]<|end_calls|>",
        ", ",
    ),
    "quotes of its own": _calls(
        "{{- '<|call|>call:' + c.name + '{' }}"
        + """{%- for k, v in c.arguments | dictsort %}{{- k + ':' }}"""
        + """{{- ('<|"|>' + v + '<|"|>') if v is string else (v | tojson) }}{%- if not loop.last %}{{- ',' }}{%- endif %}"""
        + "{%- endfor %}{{- '}<|end_call|>' }}",
    ),
    "arguments as text": _calls(
        """{{- '<|calls|>' + c.name + '\n' + c.arguments + '<|end_call|>' }}"""
    ),
}  # fmt: skip
TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|calls|>",
    "<|end_calls|>", "<|call|>", "<|sep|>", "<|end_call|>", '<|"|>', "[TOOL_CALLS]", "<arg_key>", "</arg_key>",
]  # fmt: skip


def template(dialect: str) -> str:
    """A whole template."""
    return HEAD + DIALECTS[dialect] + TAIL
