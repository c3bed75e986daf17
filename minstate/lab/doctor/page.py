"""What an examination found, as one page of HTML that needs nothing else: it loads nothing, and runs no script."""

import html
from collections.abc import Mapping

from minstate.lab.doctor.causes import CAUSES
from minstate.lab.doctor.findings import Examination, Examined
from minstate.lab.doctor.prices import Pricing
from minstate.lab.doctor.report import changes, summary

SHOWN = 2_000  # requests that the page shows; further ones are in the JSON
OPEN = 3  # sessions that are unfolded although nothing is lost in them
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --dim: #666; --line: #ccc; --old: #9fd3f2;
  --lost: #d55e00; --new: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e6e6e6; --dim: #a8a8a8; --line: #44474d;
  --old: #2b5d78; --lost: #ff8a3d; --new: #4fb0ee } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem }
.row { display: grid; grid-template-columns: 6rem 1fr; gap: 0 .6rem; align-items: center; margin: 3px 0 }
.row small { color: var(--dim); text-align: right }
.strip { display: flex; height: 14px; outline: 1px solid var(--line); min-width: 2px }
.why { grid-column: 2; font-size: .85rem }
.old { background: var(--old) } .new { background: var(--new) }
.lost { background: repeating-linear-gradient(45deg, var(--lost) 0 5px, var(--paper) 5px 7px) }
.key { display: inline-block; width: 1.6rem; height: .8rem; margin: 0 .3rem 0 1rem; vertical-align: middle }
summary { cursor: pointer; margin-top: .6rem } pre { white-space: pre-wrap }
"""


def page(found: Examination, price: Pricing | None = None, title: str = "What the cache loses") -> str:
    """The findings, and below them a strip for each request, coloured by old, lost and new."""
    best = "".join(f"<li>{html.escape(words)}</li>" for words, _ in changes(found, price))
    widest = max((request.tokens for request in found.requests), default=1)
    by_session: dict[int, list[Examined]] = {}
    for request in found.requests[:SHOWN]:
        by_session.setdefault(request.session, []).append(request)
    rest = len(found.requests) - SHOWN
    sessions = "".join(_session(number, requests, widest) for number, requests in by_session.items())
    more = f"<p>{rest:,} further requests are not shown.</p>" if rest > 0 else ""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
{f"<h2>What would save most</h2><ol>{best}</ol>" if best else "<p>Nothing is lost.</p>"}
<h2>All together</h2><pre>{html.escape(summary(found, price))}</pre>
<h2>Requests</h2><p>A strip is as wide as its prompt is long: {widest:,} tokens at most.
<span class="key old"></span>old: computed before <span class="key lost"></span>lost: computed before, and once more
<span class="key new"></span>new</p>
{sessions}{more}
</body></html>
"""


def _session(number: int, requests: list[Examined], widest: int) -> str:
    fork = f", a fork of session {requests[0].fork_of}" if requests[0].fork_of else ""
    lost = sum(request.lost for request in requests)
    many = f"{len(requests)} request{'s' if len(requests) > 1 else ''}"
    rows = "\n".join(_row(request, widest) for request in requests)
    opened = " open" if lost or number <= OPEN else ""
    return f"<details{opened}><summary>Session {number}{fork}: {many}, {lost:,} tokens lost</summary>{rows}</details>\n"


def _row(request: Examined, widest: int) -> str:
    counts = f"{request.tokens:,} tokens: {request.old:,} old, {request.lost:,} lost, {request.new:,} new"
    why = ""
    if request.cause:
        where = "" if request.message is None else f" (message {request.message + 1})"
        words = f": {request.was!r} became {request.now!r}" if request.was or request.now else ""
        why = html.escape(CAUSES[request.cause][0] + where + words)
    shares: Mapping[str, int] = {"old": request.old, "lost": request.lost, "new": request.new}
    parts = "".join(
        f'<span class="{name}" style="width:{100 * count / max(1, request.tokens):.2f}%"></span>'
        for name, count in shares.items()
        if count
    )
    hover = html.escape(f"{request.place}\n{counts}") + (f"\n{why}" if why else "")
    strip = (
        f'<div class="strip" role="img" aria-label="{counts}" style="width:{100 * request.tokens / widest:.2f}%">'
        f"{parts}</div>"
    )
    text = f'<div class="why">{request.lost:,} lost: {why}</div>' if why else ""
    return f'<div class="row" title="{hover}"><small>{request.tokens:,}</small>{strip}{text}</div>'
