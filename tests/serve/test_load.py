"""Load by GuideLLM, where it is installed, on a server of this process; and what is said where it is not."""

import pytest
from test_server import running

from minstate.errors import BadValue
from minstate.lab.bench import serve_load

GUIDELLM = serve_load.ENVIRONMENTS / "guidellm" / "bin" / "guidellm"


def test_without_guidellm_it_says_where_to_read_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(serve_load, "ENVIRONMENTS", tmp_path)
    with pytest.raises(BadValue, match=r"there is no .*guidellm: CONTRIBUTING\.md says how"):
        serve_load.serve_load()


@pytest.mark.skipif(not GUIDELLM.exists(), reason="needs GuideLLM in an environment of its own")
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_an_unchanged_client_pays_for_what_is_new(api, monkeypatch):
    for name, tokens in {"FIRST": 20, "NEXT": 5, "REPLY": 4}.items():
        monkeypatch.setattr(serve_load, name, tokens)
    with running() as (url, _):
        row = serve_load.measure(GUIDELLM, url.removesuffix("/v1"), api, 2)
    assert row["requests"] == serve_load.TURNS * 3 and row["output tokens/s"] > 0
    assert 0 < row["prefilled"] < row["prompt tokens"] / 2
