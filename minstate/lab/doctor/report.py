"""What an examination found: in words, as JSON, and as one page of HTML that needs nothing else."""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from minstate.lab.doctor.causes import CAUSES
from minstate.lab.doctor.examine import Examination, Examined

SHOWN = 2_000  # requests that the page shows; further ones are in the JSON
BEST = 3  # changes that are proposed


@dataclass(frozen=True)
class Price:
    """What tokens of a prompt cost, a million each, in `unit`; a machine's price is seconds.

    A token that is lost could have been read from the cache, so it costs the difference.
    """

    prompt: float
    cached: float = 0.0
    unit: str = "$"

    def of_lost(self, tokens: int) -> float:
        """What these lost tokens have cost."""
        return tokens / 1e6 * (self.prompt - self.cached)

    def shown(self, tokens: int) -> str:
        """The same with its unit."""
        cost = self.of_lost(tokens)
        return f"{cost:,.2f} s" if self.unit == "s" else f"{self.unit}{cost:,.2f}"


def changes(found: Examination) -> list[tuple[str, int]]:
    """The changes that would save most, in plain words, with the lost tokens of each; at most three."""
    best = []
    for cause, (requests, lost) in list(found.causes().items())[:BEST]:
        what, how = CAUSES[cause]
        example = next((r for r in found.requests if r.cause == cause and (r.was or r.now)), None)
        words = f" (here {example.was!r} became {example.now!r})" if example and cause in ("volatile", "system") else ""
        much = f"{lost / found.days:,.0f} tokens a day" if found.days else f"{lost:,} tokens in this log"
        best.append((f"{what[0].upper()}{what[1:]}{words}: {how}. {much}, in {requests:,} requests.", lost))
    return best


def summary(found: Examination, price: Price | None = None) -> str:
    """The findings as text."""
    tokens, reading = found.total("tokens"), found.reading
    share = {what: found.total(what) / max(1, tokens) for what in ("old", "lost", "new")}
    lines = [
        f"{len(found.requests):,} requests in {found.sessions:,} sessions, {tokens:,} tokens of prompts "
        f"(tokenizer and template: {found.tokenizer}).",
        "Formats: " + ", ".join(f"{name} {count:,}" for name, count in reading.formats.most_common()) + ".",
        f"Old {found.total('old'):,} ({share['old']:.1%}), lost {found.total('lost'):,} ({share['lost']:.1%}), "
        f"new {found.total('new'):,} ({share['new']:.1%}).",
    ]
    lines += [f"  prefilled with {name:20} {count:>15,}" for name, count in found.prefilled().items()]
    if replied := found.total("reply_tokens"):
        saved = found.total("saved_passes")
        lines.append(f"Prompt lookup would have saved {saved:,} of {replied:,} forward passes of decoding.")
    reported = [request.reported for request in found.requests if request.reported]
    if reported:
        lines.append(
            f"The provider reports {sum(c for _, c in reported):,} of {sum(t for t, _ in reported):,} as cached."
        )
    causes = found.causes()
    lines.append("Nothing is lost." if not causes else "Lost, by cause:")
    for cause, (requests, lost) in causes.items():
        cost = f", {price.shown(lost)}" if price else ""
        lines.append(f"  {lost:>12,} tokens in {requests:,} requests{cost}: {CAUSES[cause][0]}")
    if causes:
        lines.append("What would save most:")
        lines += [f"  {n}. {words}" for n, (words, _) in enumerate(changes(found), 1)]
        lines.append("Only the first cause of each request is named: behind it there may be others.")
    if past := sum(request.past_limit for request in found.requests):
        lines.append(f"{past:,} requests are longer than {found.limit:,} tokens.")
    if reading.skipped:
        lines.append(f"Skipped {reading.skipped:,} records of {reading.records:,}:")
        lines += [f"  {problem}" for problem in reading.named]
    lines += [f"Note: {note}, {count:,} times." for note, count in reading.notes.items()]
    return "\n".join(lines)


def as_json(found: Examination) -> str:
    """All of it, a request a line."""
    reading = found.reading
    about = {
        "tokenizer": found.tokenizer, "sessions": found.sessions, "tokens": found.total("tokens"),
        "prefilled": found.prefilled(), "causes": found.causes(), "records": reading.records,
        "skipped": reading.skipped, "named": reading.named, "notes": dict(reading.notes),
    }  # fmt: skip
    rows = ",\n  ".join(json.dumps(asdict(request), ensure_ascii=False) for request in found.requests)
    return f'{json.dumps(about, ensure_ascii=False)[:-1]}, "requests": [\n  {rows}\n]}}\n'


STYLE = """
:root{--paper:#fff;--ink:#222;--dim:#666;--line:#ddd;--old:#56B4E9;--lost:#D55E00;--new:#0072B2}
@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e6e6e6;--dim:#a0a0a0;--line:#3a3d42;--new:#3a9bdc;--old:#2b5d78}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:right}td:last-child,th:last-child{text-align:left}
.strip{display:flex;height:14px;border:1px solid var(--line);min-width:2px}.row{display:grid;grid-template-columns:7rem 1fr;gap:.6rem;
align-items:center;margin:2px 0}.row small{color:var(--dim)}.why{grid-column:2;font-size:.85rem}.old{background:var(--old)}
.new{background:var(--new)}.lost{background:repeating-linear-gradient(45deg,var(--lost) 0 5px,var(--paper) 5px 7px)}
.key{display:inline-block;width:1.6rem;height:.8rem;margin:0 .3rem 0 1rem;vertical-align:middle}summary{cursor:pointer}
pre{white-space:pre-wrap}
"""


def page(found: Examination, price: Price | None = None, title: str = "What the cache loses") -> str:
    """One page of HTML: the findings, and a strip for each request. It loads nothing, and runs no script."""
    best = "".join(f"<li>{html.escape(words)}</li>" for words, _ in changes(found))
    widest = max((request.tokens for request in found.requests), default=1)
    by_session: dict[int, list[Examined]] = {}
    for request in found.requests[:SHOWN]:
        by_session.setdefault(request.session, []).append(request)
    rest = len(found.requests) - SHOWN
    sessions = "".join(_session(number, requests, widest) for number, requests in by_session.items())
    more = f"<p>{rest:,} further requests are not shown.</p>" if rest > 0 else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>{f"<h2>What would save most</h2><ol>{best}</ol>" if best else "<p>Nothing is lost.</p>"}
<h2>All together</h2><pre>{html.escape(summary(found, price))}</pre><h2>Requests</h2>
<p>The width is the number of tokens, {widest:,} at most.<span class="key old"></span>old: computed before
<span class="key lost"></span>lost: computed before, and again <span class="key new"></span>new</p>{sessions}{more}
</body></html>
"""


def _session(number: int, requests: list[Examined], widest: int) -> str:
    fork = f", a fork of session {requests[0].fork_of}" if requests[0].fork_of else ""
    lost = sum(request.lost for request in requests)
    head = f"Session {number}{fork}: {len(requests)} requests, {lost:,} tokens lost"
    rows = "".join(_row(request, widest) for request in requests)
    return f"<details{' open' if lost or number <= BEST else ''}><summary>{head}</summary>{rows}</details>"


def _row(request: Examined, widest: int) -> str:
    counts = f"{request.tokens:,} tokens: {request.old:,} old, {request.lost:,} lost, {request.new:,} new"
    why = ""
    if request.cause:
        where = "" if request.message is None else f" (message {request.message})"
        words = f": {request.was!r} became {request.now!r}" if request.was or request.now else ""
        why = html.escape(CAUSES[request.cause][0] + where + words)
    shares: Mapping[str, int] = {"old": request.old, "lost": request.lost, "new": request.new}
    parts = "".join(
        f'<span class="{name}" style="width:{100 * count / max(1, request.tokens):.2f}%"></span>'
        for name, count in shares.items() if count
    )  # fmt: skip
    hover = html.escape(f"{request.place}\n{counts}") + (f"\n{why}" if why else "")
    return (
        f'<div class="row" title="{hover}"><small>{request.tokens:,}</small><div class="strip" role="img" '
        f'aria-label="{counts}" style="width:{100 * request.tokens / widest:.2f}%">{parts}</div>'
        + (f'<div class="why">{request.lost:,} lost: {why}</div>' if why else "") + "</div>"
    )  # fmt: skip
