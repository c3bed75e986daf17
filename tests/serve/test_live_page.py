"""The page at `/`: what it is told, what it is not told, and how it looks in a browser where there is one."""

import re
import shutil
from types import SimpleNamespace

import httpx
import openai
import pytest
from matplotlib.colors import to_hex
from test_server import TOOL, ask, respond, running, user

from minstate.lab.engines.small_engine import small_engine
from minstate.lab.figures import palette
from minstate.lab.notebook.browse import PROGRAMS, chromium
from minstate.serve.activity import PROMPT, REPLY, Shown, live_turn
from minstate.serve.live_page import FILES, FOLDER

EVIL = "<img src=x onerror='document.title=1'><script>document.title=2</script>"


@pytest.fixture(scope="module")
def server():
    with running({"k1": "one", "k2": "two"}) as (url, service):
        yield SimpleNamespace(url=url, root=url.removesuffix("/v1"), service=service)


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="k1", max_retries=0) as one:
        yield one


def seen(server, key="k1"):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{server.root}/activity", headers=headers)


def conversation(server, begin):
    (found,) = [one for one in seen(server).json()["conversations"] if one["title"].startswith(f"user: {begin}")]
    return found


def test_each_token_of_a_turn_has_one_kind(server, client):
    history = [{"role": "system", "content": "Be brief."}, user("count what this costs")]
    for _ in range(3):
        answer = ask(client, history, max_tokens=30)
        cost, shown = answer.usage.model_extra["minstate"], conversation(server, "count what")
        counts = shown["turns"][-1]["tokens"]
        assert sum(counts[kind] for kind in PROMPT) == answer.usage.prompt_tokens
        assert sum(counts[kind] for kind in REPLY) == answer.usage.completion_tokens == 30
        assert counts["reused"] + counts["shared"] == cost["reused"] and counts["recomputed"] == cost["recomputed"]
        assert counts["accepted"] == cost["accepted"] and not counts["forced"]
        history += [answer.choices[0].message.model_dump(exclude_none=True), user("again")]
    assert [turn["turn"] for turn in shown["turns"]] == [1, 2, 3] and shown["turns"][-1]["input"] == "user: again"


def test_a_call_has_forced_tokens(server, client):
    options = {"tools": [TOOL], "tool_choice": "required", "extra_body": {}, "max_tokens": 80}
    answer = client.chat.completions.create(messages=[user("force")], model="small", temperature=0, **options)
    (turn,) = conversation(server, "force")["turns"]
    assert turn["tokens"]["forced"] == answer.usage.model_extra["minstate"]["forced"] > 10
    assert turn["state"] == "tool_calls"


def test_a_branch_of_an_older_turn_is_a_conversation_that_says_where_it_begins(server, client):
    one = respond(client, "trunk")
    respond(client, "two", previous_response_id=one.id)
    trunk = conversation(server, "trunk")
    respond(client, "other", previous_response_id=one.id)
    first, *_ = seen(server).json()["conversations"]
    assert first["origin"] == f"goes on from turn 1 of conversation {trunk['number']}" and trunk["count"] == 2


def test_a_history_that_has_drifted_says_so(server, client):
    answer = ask(client, [user("drift away")])
    edited = [user("drift away"), {"role": "assistant", "content": "edited"}, user("go on")]
    ask(client, [user("drift away"), answer.choices[0].message.model_dump(exclude_none=True), user("go on")])
    ask(client, edited)
    first, *_ = seen(server).json()["conversations"]
    assert first["turns"][-1]["drift"]["reason"] == "edited" and first["turns"][-1]["drift"]["message"] == 1


def test_nobody_sees_the_text_of_other_tenants(server, client):
    ask(client, [user("my secret")])
    assert "my secret" in seen(server).text
    for key in ("k2", None):
        answer = seen(server, key)
        assert answer.status_code == 200 and answer.json()["conversations"] == []
        assert "secret" not in answer.text and answer.json()["totals"]["new"] > 0
    assert seen(server, None).json()["tenant"] is None and seen(server, "k2").json()["tenant"] == "two"
    assert seen(server, "k3").status_code == 401
    assert httpx.get(f"{server.root}/activity", headers={"host": "evil.example"}).status_code == 403


def test_what_a_client_deletes_is_not_shown(server, client):
    made = respond(client, "forget me")
    assert "forget me" in seen(server).text
    client.responses.delete(made.id)
    assert "forget me" not in seen(server).text


def test_without_keys_everybody_is_one_tenant():
    with running() as (url, _), openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        ask(client, [user("hello")])
        shown = httpx.get(url.removesuffix("/v1") + "/activity").json()
        assert shown["tenant"] == "default" and shown["conversations"][0]["title"] == "user: hello"
        assert shown["pool"]["pages"] == 512 == sum(shown["pool"][kind] for kind in ("in use", "idle", "free"))
        assert shown["pool"]["idle"] > 0 and shown["running"] == shown["waiting"] == 0


def test_what_is_kept_and_sent_is_bounded():
    with running() as (url, service), openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        one = None
        for place in range(24):
            ask(client, [user(f"{place} " + "x" * 700)], max_tokens=1)
            one = respond(client, "y", previous_response_id=one and one.id, max_output_tokens=1)
        shown = httpx.get(url.removesuffix("/v1") + "/activity")
        assert len(shown.content) < 16 * 16 * 600
        conversations = shown.json()["conversations"]
        assert len(conversations) == 16 and max(len(each["turns"]) for each in conversations) == 16
        assert conversations[0]["count"] == 24 and shown.json()["left"] == 0
        assert not service.activity._under_way


def test_a_turn_that_is_under_way_tells_how_far_it_has_come():
    engine = small_engine(token_budget=16)
    request = engine.submit(engine.open(), "w" * 40, max_new_tokens=4)
    shown = Shown(None, "default", "user: www", [])
    engine.step()
    turn = live_turn(shown, request)
    assert turn["state"] == f"{request.prompt_length - 16} tokens to prefill" and turn["tokens"]["sampled"] == 0
    while not request.generated:
        engine.step()
    turn = live_turn(shown, request)
    assert turn["state"] == "decoding" and "".join(text for _, text in turn["text"]) == request.text


def test_the_files_load_nothing_from_elsewhere_and_the_browser_is_told_so(server):
    for path, (name, kind) in FILES.items():
        answer = httpx.get(server.root + path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"].startswith("default-src 'none';")
        assert answer.content == (FOLDER / name).read_bytes()
        assert not re.search(r"https?:|//[a-z]|@import|url\(|innerHTML|outerHTML|insertAdjacent", answer.text), name
    assert httpx.get(server.root, headers={"host": "evil.example"}).status_code == 403


def test_the_colours_are_the_palettes_and_each_kind_has_a_look():
    css, script = ((FOLDER / name).read_text() for name in ("page.css", "page.js"))
    known = {getattr(palette, name).upper() for name in dir(palette) if re.match(r"#", str(getattr(palette, name)))}
    assert to_hex(palette.BLUE).upper() in known
    assert {color.upper() for color in re.findall(r"#[0-9a-fA-F]{3,8}\b", css)} <= known
    assert not re.search(r"#[0-9a-fA-F]{6}|rgb\(|hsl\(", script + (FOLDER / "index.html").read_text())
    for kind in (*PROMPT, *REPLY):
        assert f"i.{kind}" in css and f"  {kind}: " in script


def test_in_a_browser(server, client, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browse`")
    if not any(map(shutil.which, PROGRAMS)):
        pytest.skip("needs a Chromium on the path")
    ask(client, [user(f"look {EVIL}")], max_tokens=40)
    problems, asked, grounds = [], [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(""))
        page = browser.new_page(viewport={"width": 900, "height": 1400})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.root)
        page.wait_for_selector("#login:visible")
        assert "look" not in page.inner_text("#conversations") and "512 pages" in page.inner_text("#pool")
        page.fill("#key", "k1")
        page.click("button")
        page.wait_for_selector("#conversations h3")
        assert EVIL[:30] in page.inner_text("#conversations") and page.title() == "minstate: live"
        assert not page.is_visible("#login") and "new" in page.inner_text("#conversations li .legend >> nth=0")
        turns = page.locator("#conversations .turn").count()
        ask(client, [user("a turn while somebody looks")])
        page.locator("#conversations .turn").nth(turns).wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert problems == [] and grounds == ["rgb(255, 255, 255)", "rgb(34, 34, 34)"]
    assert all(url.startswith((server.root, "data:")) for url in asked)
