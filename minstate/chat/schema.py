"""stub"""

import json

from minstate.errors import BadValue


def as_grammar(schema, separators=(", ", ": ")):
    if separators is None:
        g = {"whitespace_flexible": True}
    else:
        g = {"whitespace_flexible": False, "item_separator": separators[0], "key_separator": separators[1]}
    try:
        text = json.dumps({**schema, "x-guidance": g}, ensure_ascii=False)
        text.encode()
        return "%json " + text
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"a schema must be JSON: {error}") from error


def arguments(schema):
    listed = "properties" in schema and "patternProperties" not in schema
    return {"additionalProperties": False, **schema} if listed else schema
