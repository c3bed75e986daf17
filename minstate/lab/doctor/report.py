"""What an examination found, in words and as JSON."""

import json
from collections import Counter
from dataclasses import asdict

from minstate.lab.doctor.causes import CAUSES
from minstate.lab.doctor.findings import Examination
from minstate.lab.doctor.prices import Pricing, lost_cost, total_cost

BEST = 3  # changes that are proposed


def changes(found: Examination, price: Pricing | None = None) -> list[tuple[str, int]]:
    """The changes that would save most, in plain words, with the lost tokens of each; at most three."""
    best = []
    for cause, requests, lost, cost in by_cost(found, price)[:BEST]:
        what, how = CAUSES[cause]
        example = next((r for r in found.requests if r.cause == cause and (r.was or r.now)), None)
        words = f" (here {example.was!r} became {example.now!r})" if example and cause in ("volatile", "system") else ""
        much = f"{lost / found.days:,.0f} tokens a day" if found.days else f"{lost:,} tokens in this log"
        if price:
            a_day = f"{price.shown(cost / found.days)} a day" if found.days else price.shown(cost)
            much += f" ({a_day})"
        best.append((f"{what[0].upper()}{what[1:]}{words}: {how}. {much}, in {_many(requests)}.", lost))
    return best


def _many(requests: int) -> str:
    return f"{requests:,} request{'' if requests == 1 else 's'}"


def by_cost(found: Examination, price: Pricing | None = None) -> list[tuple[str, int, int, float]]:
    """For each cause its requests, its lost tokens and what these cost, the costliest first."""
    rows = []
    for cause, (requests, lost) in found.causes().items():
        cost = lost_cost((r for r in found.requests if r.cause == cause), price) if price else float(lost)
        rows.append((cause, requests, lost, cost))
    return sorted(rows, key=lambda row: -row[3])


def summary(found: Examination, price: Pricing | None = None) -> str:
    """The findings as text."""
    tokens, reading = found.total("tokens"), found.reading
    share = {what: found.total(what) / max(1, tokens) for what in ("old", "lost", "new")}
    lines = [
        f"{len(found.requests):,} requests in {found.sessions:,} sessions, {tokens:,} tokens of prompts "
        f"(tokenizer and template: {found.tokenizer}).",
        "Formats: " + ", ".join(f"{name} {count:,}" for name, count in reading.formats.most_common()) + ".",
        *_estimate(found),
        f"Old {found.total('old'):,} ({share['old']:.1%}), lost {found.total('lost'):,} ({share['lost']:.1%}), "
        f"new {found.total('new'):,} ({share['new']:.1%}).",
    ]
    lines += [f"  prefilled with {name:20} {count:>15,}" for name, count in found.prefilled().items()]
    if price:
        total, lost = total_cost(found.requests, price), lost_cost(found.requests, price)
        lines.append(f"The prompts cost {price.shown(total)}, of which the lost tokens {price.shown(lost)}.")
    replied, saved = found.total("reply_tokens"), found.total("saved_passes")
    if saved:
        lines.append(f"Prompt lookup would have saved {saved:,} of {replied:,} forward passes of decoding.")
    return "\n".join([*lines, *_losses(found, price), *_records(found)])


def _estimate(found: Examination) -> list[str]:
    """Whose tokens the counts are, where the log says which models it is about."""
    lines, models = [], Counter(request.model for request in found.requests if request.model)
    if any(model.rpartition("/")[2].lower() != found.tokenizer.rpartition("/")[2].lower() for model in models):
        names = ", ".join(name for name, _ in models.most_common(3)) + (", …" if len(models) > 3 else "")
        lines.append(f"The log is of {names}: if its tokenizer or template is another one, all counts are estimates.")
    reported = [(request.tokens, *request.reported) for request in found.requests if request.reported]
    if reported:
        ours, theirs, cached = map(sum, zip(*reported, strict=True))
        lines.append(f"The provider reports {cached:,} of {theirs:,} tokens as cached, where we count {ours:,}.")
    return lines


def _losses(found: Examination, price: Pricing | None) -> list[str]:
    causes = by_cost(found, price)
    if not causes:
        return ["Nothing is lost." if found.requests else "No request could be read."]
    lines = ["Lost, by cause:"]
    for cause, requests, lost, cost in causes:
        money = f", {price.shown(cost)}" if price else ""
        lines.append(f"  {lost:>12,} tokens in {_many(requests)}{money}: {CAUSES[cause][0]}")
    lines.append("What would save most:")
    lines += [f"  {n}. {words}" for n, (words, _) in enumerate(changes(found, price), 1)]
    return [*lines, "Only the first cause of each request is named: behind it there may be others."]


def _records(found: Examination) -> list[str]:
    reading, lines = found.reading, []
    if past := sum(request.past_limit for request in found.requests):
        lines.append(f"{past:,} requests are longer than {found.limit:,} tokens.")
    if reading.skipped:
        lines.append(f"Skipped {reading.skipped:,} records of {reading.records:,}:")
        lines += [f"  {problem}" for problem in reading.named]
    return lines + [f"Note: {note}, {count:,} times." for note, count in reading.notes.items()]


def as_json(found: Examination, price: Pricing | None = None) -> str:
    """All of it, a request a line."""
    reading = found.reading
    about = {
        "tokenizer": found.tokenizer, "sessions": found.sessions, "tokens": found.total("tokens"),
        "prefilled": found.prefilled(), "causes": found.causes(), "records": reading.records,
        "skipped": reading.skipped, "named": reading.named, "notes": dict(reading.notes),
        "changes": [words for words, _ in changes(found, price)],
    }  # fmt: skip
    if price:
        about["cost"] = {
            "unit": price.shown(0).replace("0", "").strip(" .,"), "prompts": total_cost(found.requests, price),
            "lost": {cause: cost for cause, _, _, cost in by_cost(found, price)},
        }  # fmt: skip
    rows = ",\n  ".join(json.dumps(asdict(request), ensure_ascii=False) for request in found.requests)
    return f'{json.dumps(about, ensure_ascii=False)[:-1]}, "requests": [\n  {rows}\n]}}\n'
