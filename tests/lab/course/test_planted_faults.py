"""Faults that students make, planted into the solution: the checker of the step finds each, and says what is wrong."""

import re

import pytest

from minstate.lab.course.build import run_checks
from minstate.lab.course.build_models import load_file
from minstate.lab.course.build_steps import SOLUTION, STEPS, solution_up_to

STACK = "torch.stack((k, v))"
PENDING = "return self.log[self.cache.length :]"
POSITIONS = "    positions = torch.arange(cache.length, cache.length + len(ids))"
FLAT = "positions = torch.cat([torch.arange(cache.length, cache.length + len(ids)) for ids, cache in parts])"
ALONE = "attended = [attention(q[i], *cache.extend(layer, k[i], v[i])) for i, (_, cache) in enumerate(parts)]"
TOGETHER = """held = [cache.extend(layer, k[i], v[i]) for i, (_, cache) in enumerate(parts)]
        attended = [attention(torch.cat(q), *(torch.cat([each[kind] for each in held]) for kind in (0, 1)))]"""
KEEP = "self.pages, self.length = self.pages[:keep], length"
FULL = "full = self.cache.length // self.tree.pool.page_size"
SPLIT = "lower.children, self.children = self.children, {"

FAULTS = {  # by step: the fault, what to write, for what, and what the message must say
    1: [
        ("a resized cache that scrambles",
         "self.kv = self.kv.resize_(*self.kv.shape[:2], capacity + room.shape[2], *self.kv.shape[3:])",
         "self.kv = torch.cat((self.kv, room), dim=2)", "a row changed when the cache grew.*K of token 0, head 0, layer 1"),
        ("a write pointer not reset", "pass\n\n\ndef attention", "self.length = length\n\n\ndef attention",
         r"the write pointer was not reset. `length` is 6 and must be 2"),
        ("a write pointer moved by each layer", f"{STACK}\n        self.length = end\n        return self.kv[",
         f"{STACK}\n        return self.kv[", "has moved `length` from 0 to 3"),
        ("K and V swapped", "self.length : end] = torch.stack((v, k))", f"self.length : end] = {STACK}",
         "the row for the K of token 0, head 0, layer 0 holds the V of token 0"),
        ("a causal mask that is square", "torch.arange(len(q))[:, None]", "torch.arange(len(k) - len(q), len(k))[:, None]",
         r"query 0 of 1 belongs to token 4 of 5 and reads the keys \[0\].*the causal mask is square"),
        ("no mask", "scores.softmax", "scores.masked_fill(~seen, -torch.inf).softmax", "later tokens must be masked out"),
        ("a mask without the token itself", "torch.arange(len(k)) < torch", "torch.arange(len(k)) <= torch",
         "its own included: compare with <="),
        ("query heads mapped to the wrong heads", "repeat(1, q.shape[1] // k.shape[1], 1)",
         "repeat_interleave(q.shape[1] // k.shape[1], dim=1)", r"read the K/V heads \[0, 1, 0, 1\]. They must read \[0, 0, 1, 1\]"),
        ("scores without a scale", "", " / q.shape[-1] ** 0.5", "the scores are not divided by √D"),
        ("rotary positions off by one", POSITIONS.replace("length, ", "length + 1, ").replace("len(ids)", "len(ids) + 1"),
         POSITIONS, r"5 new tokens behind 0 in the cache get the positions \[1, 2, 3, 4, 5\].*off by one"),
        ("rotary positions off by one behind a cache",
         "    positions = torch.arange(len(ids)) + max(0, cache.length - 1)",
         POSITIONS, r"get the positions \[4\], not \[5\]: they are off by one"),
        ("positions that begin anew", "    positions = torch.arange(len(ids))", POSITIONS,
         "each pass begins at 0; begin at cache.length"),
        ("a cache that is never longer", "    return x\n", "    cache.length += len(ids)\n    return x\n",
         "afterwards cache.length is 0, not 5"),
        ("a layer that reads the first layer's cache", "cache.extend(0, k, v)", "cache.extend(layer, k, v)", "token 0 differs"),
    ],
    2: [
        ("a freed page still in a table", "self.length = length", KEEP, "a freed page is still in use: page . has 0 owners"),
        ("a page leak", "pass", "self.pool.hold(self.pages[keep:], -1)", "a page leak: page . has 1 owner"),
        ("a write pointer not reset", "self.pages = self.pages[:keep]", KEEP, "the write pointer was not reset"),
        ("a page given back that is needed", "keep = length // self.pool", "keep = -(-length // self.pool",
         "holds some of the 13 tokens that stay: round up"),
        ("pages for each layer", "for _ in range(-(-len(k) // size)):", "while len(self.pages) * size < end:",
         "in layer 1 the table has 2 pages for 3 tokens, and 1 of 4 slots suffice"),
        ("a page taken twice", "pass", "self.owners[page] = 1", r"gave \[0, 0, 0\]. A page that has an owner is not free"),
        ("slots that overlap", "[:, None] * (size - 1)", "[:, None] * size", "token|slots"),
        ("K and V of the whole pool's first rows", "return kv[:, :end]", "return kv[:, slots]", "it returns|two texts"),
    ],
    3: [
        ("a turn that ingests the last token twice", "self.log += self.log[-1:] + ids", "self.log += ids",
         "the last of the previous reply, stands in `log` twice"),
        ("tokens that are forwarded again", "return self.log[max(0, self.cache.length - 1) :]", PENDING,
         "tokens are ingested twice; all but the newest had K and V already"),
        ("a turn that never ingests the last token", "self.cache.length, self.log = len(self.log), self.log + ids",
         "self.log += ids", "the last of the previous reply, was never ingested"),
        ("the whole conversation again", "self.cache.truncate(0 if len(self.log) == self.start else self.cache.length)\n"
         f"        {PENDING}", PENDING, "turn 2.*the whole conversation again. It must forward Δ"),
        ("a pass at the end of a turn", "forward(self.model, self.pending(), self.cache)\n        return self.log[self.start :]",
         "return self.log[self.start :]", "turn 1: a later pass|must be one fewer"),
        ("a stop token in the input", "or (self.log[-1] in self.stop)",
         "or (len(self.log) > self.start and self.log[-1] in self.stop)", "Only a token of the reply ends it"),
        ("no stop token", "", " or (len(self.log) > self.start and self.log[-1] in self.stop)", "it ends with that token"),
        ("the first row chosen", "logits(x[:1])", "logits(x[-1:])", "Is the token chosen from the last row"),
    ],
    4: [
        ("a split off by one", "self.pages[count - 1 :])", "self.pages[count:])", "a split is off: a node has"),
        ("a split whose texts are off by one", "self.ids[(count + 1) * self.pool.page_size :], self.pages[count:]",
         "self.ids[count * self.pool.page_size :], self.pages[count:]", "a split is off: a node has"),
        ("a split that forgets what was below", "self.children = {", SPLIT, "what was below it stays below its lower part"),
        ("a page too many in a match", "child.pages[: same + 1]", "child.pages[:same]", "It gives a page too many"),
        ("a match that ends at the first node", "[]", "(child.match(ids[len(child.ids) :]) if same == len(child.pages) else [])",
         r"after five texts were inserted, match gives the pages \[0\] for one of them"),
        ("a tree that owns nothing", "pass\n        elif", "self.pool.hold(pages)\n        elif", r"owners\[.\] is 1, but .*: 2 owners"),
        ("a tree that owns a page twice", "child.split(same)\n            self.pool.hold(child.pages)", "child.split(same)",
         r"owners\[.\] is .*once in the tree: 2 owners"),
        ("pages borrowed without an owner", "pass", "self.tree.pool.hold(self.cache.pages)",
         "2 page tables and once in the tree: 3 owners"),
        ("nothing left to forward", "match(self.log)", "match(self.log[:-1])", "over no token.*log\\[:-1\\] at most"),
        ("borrowed tokens forwarded again", "pass", "self.cache.length = len(self.cache.pages) * self.tree.pool.page_size",
         "the first pass forwards 11 tokens, not 3"),
        ("a page published before it is full", "full = -(-self.cache.length // self.tree.pool.page_size)", FULL,
         "A page may be published when it is full"),
        ("nothing published", "full = 0", FULL, "the first pass forwards 11 tokens, not 3"),
    ],
    5: [
        ("rejected drafts kept in the cache", "pass", "self.cache.truncate(len(self.log) - 1)",
         "rejected drafts are kept in the cache"),
        ("rejected drafts kept by verify", "return draft + chosen[-1:]", "return chosen[: right + 1]",
         "rejected guesses are kept. Only what the model chose"),
        ("rejected drafts kept in the log", "in [*self.draft, chosen[-1]]:", "in verify(self.draft, chosen):",
         "rejected guesses are kept in the log"),
        ("the model's own token dropped", "return chosen[:right]", "return chosen[: right + 1]", "a pass earns at least one token"),
        ("choices behind a wrong guess", "return [c for d, c in zip(draft, chosen) if d == c] + chosen[-1:]",
         "return chosen[: right + 1]", "verify: for the draft"),
        ("an end that matches itself", "range(len(log), ngram - 1, -1)", "range(len(log) - 1, ngram - 1, -1)", "matches itself"),
        ("the first occurrence", "range(ngram, len(log))", "range(len(log) - 1, ngram - 1, -1)",
         "what followed the last earlier occurrence"),
        ("a reply that goes on behind a stop token", "if True:", "if not self.done:", "goes on behind the stop token"),
        ("a draft longer than the reply", "", "[: self.end - len(self.log) - 1]", "though the reply may have"),
        ("rows of other tokens", "x[: 1 + len(self.draft)]", "x[-1 - len(self.draft) :]",
         "choices are read from rows that belong to other tokens"),
    ],
    6: [
        ("ragged rows that see each other", TOGETHER, ALONE, "ragged rows see each other|the rows of text"),
        ("positions of the batch", "positions = torch.arange(sum(counts))", FLAT, "A token's position is its place in its own text"),
        ("a pass for each text", "return [forward(model, ids, cache) for ids, cache in parts]", "return x.split(counts)",
         "passes (calls of `embed`) for 3 texts. One is the point"),
        ("rows in another order", "return x.split(counts)[::-1]", "return x.split(counts)", "rows of the shapes"),
        ("one text's queries over another's cache", ALONE.replace("q[i], *cache", "q[i], *parts[0][1]"), ALONE, "text"),
        ("caches that are never longer", "pass\n    return x.split", "cache.length += len(ids)\n    return x.split",
         "the cache of text 0 has length 7, not 8"),
        ("complete sessions that go on",
         "while any(not session.done for session in sessions) and (running := sessions):",
         "while running := [session for session in sessions if not session.done]:", "only while its reply is not complete"),
        ("one session after the other", "if not session.done][:1]:", "if not session.done]:", "9 are enough"),
    ],
}  # fmt: skip
CASES = [(step, *fault) for step, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize("step", STEPS)
def test_the_solution_passes_every_check_on_the_small_model(step):
    text = solution_up_to(step)
    assert len(run_checks(load_file(SOLUTION, "solution", text), step, real=False)) >= 3


@pytest.mark.parametrize(("step", "fault", "new", "old", "message"), CASES, ids=lambda each: str(each)[:60])
def test_a_planted_fault_is_named_by_the_checker_of_its_step(step, fault, new, old, message):
    text = solution_up_to(step)
    before = solution_up_to(step - 1) if step > 1 else ""
    section = text[len(before) :]
    assert section.count(old) == 1, f"{section.count(old)} times {old}"
    engine = load_file(SOLUTION, "planted", before + section.replace(old, new))
    with pytest.raises(AssertionError) as caught:
        run_checks(engine, step, real=False)
    assert re.search(message, str(caught.value), flags=re.DOTALL), f"{fault}: {caught.value}"
    assert str(caught.value).startswith(f"step {step} · ")
