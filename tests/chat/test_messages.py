"""Messages and tools as a user may pass them."""

import pytest

from minstate import BadMessage
from minstate.chat.messages import normalise, normalise_tools


def test_content_may_come_in_parts():
    (message,) = normalise({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    assert message["content"] == "ab"
    with pytest.raises(BadMessage, match="not text"):
        normalise({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]})


@pytest.mark.parametrize("tools", ["ls", [5], [{"f": object()}], {"name": "ls"}])
def test_tools_must_be_schemas(tools):
    with pytest.raises(BadMessage, match="tools"):
        normalise_tools(tools)
