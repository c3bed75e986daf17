"""The page of HTML: well-formed, complete by itself, and shown by a browser in light and in dark."""

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from minstate.draft_budget import CostTable
from minstate.errors import BadValue
from minstate.lab.doctor import __main__ as command
from minstate.lab.doctor.findings import Examination, Examined, without_text
from minstate.lab.doctor.page import page
from minstate.lab.doctor.prices import Machine, Price, PriceList, lost_cost, total_cost
from minstate.lab.doctor.report import as_json, by_cost, changes, summary
from minstate.lab.notebook.browse import PROGRAMS
from minstate.lab.paths import DATA

VOID = {"meta"}


def request(number: int, cause: str = "", **counts) -> Examined:
    words = {"was": 'It is <b>"08:00"</b>', "now": "It is 08:01"} if cause == "volatile" else {}
    given = {"tokens": 1000, "old": 600, "lost": 300, "new": 100} | counts
    return Examined(f"log.jsonl, line {number}", 1, None, **given, blocks={16: 1, 64: 1, 128: 1}, cause=cause, **words)


FOUND = Examination(
    [request(1, old=0, lost=0, new=1000), request(2, "volatile"), request(3, "tools_order", lost=200, new=200)],
    tokenizer="bytes",
    sessions=1,
)


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what the page says."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_well_formed_loads_nothing_and_shows_each_request_with_its_cause():
    read = Reader(page(FOUND, Price(3, 0.3)))
    tags = {tag for tag, _ in read.seen}
    assert not tags & {"script", "link", "img", "iframe", "b"}, "and what the log says is text, never a tag"
    assert not any({"src", "href"} & attributes.keys() for _, attributes in read.seen)
    rows = [attributes["title"] for _, attributes in read.seen if attributes.get("class") == "row"]
    assert len(rows) == 3 and 'It is <b>"08:00"</b>' in rows[1] and "another order" in rows[2]
    assert any("300 lost: a date, a time or an id" in text for text in read.texts), "causes stand there as text, too"
    strips = [attributes for _, attributes in read.seen if attributes.get("class") == "strip"]
    assert all(strip["role"] == "img" and "old" in strip["aria-label"] for strip in strips)
    parts = [float(a["style"][6:-1]) for _, a in read.seen if a.get("class") in ("old", "lost", "new")]
    assert sum(parts) == pytest.approx(300)


def test_a_report_without_text_says_nothing_of_the_log():
    bare = without_text(FOUND)
    for text in (page(bare), summary(bare), as_json(bare)):
        assert "08:0" not in text and "date, a time or an id" in text
    skipped = Examination()
    skipped.reading.skip("log.jsonl, line 3: expected JSON, found '{\"secret\"': was the line cut off?")
    assert "No request could be read." in summary(skipped)
    assert "secret" not in summary(without_text(skipped)) and "line 3" in summary(without_text(skipped))


def colours(path, tmp_path, *options) -> set:
    program = next(filter(None, map(shutil.which, [os.environ.get("CHROMIUM", ""), *PROGRAMS])), None)
    if program is None:
        pytest.skip("no Chromium on the path, and none named in CHROMIUM")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,1200"]
    subprocess.run(
        [program, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", *options, path.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    counted = Image.open(shot).convert("RGB").getcolors(2**24)
    return {colour for count, colour in counted if count > 200}


@pytest.mark.parametrize(
    ("scheme", "old", "paper"), [("1", (159, 211, 242), (255, 255, 255)), ("0", (43, 93, 120), (22, 24, 28))]
)
def test_a_browser_shows_the_strips_in_light_and_in_dark(tmp_path, scheme, old, paper):
    path = tmp_path / "report.html"
    path.write_text(page(FOUND))
    assert {old, paper} <= colours(path, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")


def test_a_lost_token_costs_what_a_new_one_costs_more_than_a_cached_one():
    price = Price(3.0, 0.5)
    assert total_cost(FOUND.requests, price) == pytest.approx((1800 * 3 + 1200 * 0.5) / 1e6)
    assert lost_cost(FOUND.requests, price) == pytest.approx(500 * 2.5 / 1e6)
    assert [cause for cause, *_ in by_cost(FOUND, price)] == ["volatile", "tools_order"]
    (first, lost), _ = changes(FOUND, price)
    assert lost == 300 and "300 tokens in this log ($0.000750), in 1 request." in first


def test_seconds_come_from_the_table_of_costs():
    machine = Machine(CostTable((1, 100), (100, 1000), ((1.0, 100.0), (1.0, 100.0))))
    assert machine.cost(1000, 0) == pytest.approx(1.0) and machine.cost(1000, 900) == pytest.approx(0.1)
    assert lost_cost(FOUND.requests, machine) == pytest.approx(0.5) and machine.shown(0.5) == "0.5 s"
    costs = Machine(CostTable.default("float32"))
    assert all(costs.cost(4000, more) <= costs.cost(4000, less) for less, more in pairwise(range(0, 4000, 500)))


def test_a_price_list_takes_the_longest_name_and_says_how_it_must_look(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"m": {"input": 1, "cached_input": 0}, "m-large": {"input": 9, "cached_input": 1}}')
    prices = PriceList.load(path)
    assert [prices.cost(10**6, 0, model) for model in ("m-large-2", "m-small", "other")] == [9, 1, 0]
    path.write_text('{"m": 3}')
    with pytest.raises(BadValue, match="a price list looks like"):
        PriceList.load(path)


def test_the_command_writes_all_reports(tmp_path, monkeypatch, capsys):
    log = DATA / "logs" / "shop_agent.jsonl"
    wrote = [
        "--html",
        str(tmp_path / "r.html"),
        "--json",
        str(tmp_path / "r.json"),
        "--no-text",
        "--machine",
        "default",
    ]
    monkeypatch.setattr("sys.argv", ["doctor", "log", str(log), *wrote])
    command.main()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["cost"]["unit"] == "s" and len(report["requests"]) == 20
    assert "What would save most" in capsys.readouterr().out
    Reader((tmp_path / "r.html").read_text())
    monkeypatch.setattr("sys.argv", ["doctor", "log", str(tmp_path / "r.html"), "--strict"])
    with pytest.raises(SystemExit, match=r"error: .*r\.html, line 1: expected JSON"):
        command.main()
