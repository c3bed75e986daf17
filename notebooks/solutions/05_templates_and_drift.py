"""Solutions to the exercises of 05 · Templates and drift. Each section runs behind the cell it names."""


# %% c09: Be the tokenizer
# The rank of a merge decides, and not where its pair stands in the text. A pair that is joined may make a new pair with
# its neighbour, so we look again after each round.
def bpe(text: str, merges: list[tuple[str, str]]) -> list[str]:
    pieces = list(text)
    while True:
        there = {(pieces[i], pieces[i + 1]) for i in range(len(pieces) - 1)}
        pair = next((merge for merge in merges if merge in there), None)
        if pair is None:
            return pieces
        joined, i = [], 0
        while i < len(pieces):
            width = 2 if tuple(pieces[i : i + 2]) == pair else 1
            joined.append("".join(pieces[i : i + width]))
            i += width
        pieces = joined


def cases(random):
    paris = [("a", "r"), ("i", "s"), ("P", "ar"), ("Par", "is")]
    yield "Paris", paris
    yield "Par", paris
    yield "paris", paris
    yield "abc", [("b", "c"), ("a", "b")]  # the rank decides
    yield "ababab", [("a", "b"), ("ab", "ab")]
    yield "aaa", [("a", "a")]  # from left to right
    yield "", paris
    yield "xyz", []
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a"), ("abc", "ab"), ("a", "a")]
    for length in (6, 9, 12, 15):
        yield "".join(random.choices("abc", k=length)), random.sample(merges, len(merges))


# %% c61: The price of a clock
# The first request is new as a whole. In each later one, all but the first `position` tokens stand behind the clock.
def price_of_a_clock(opening: int, position: int, turns: list[tuple[int, int]]) -> int:
    forwarded, known, prompt = 0, 0, opening
    for new, generated in turns:
        prompt += new
        forwarded += prompt - known
        prompt += generated
        known = position
    return forwarded


def cases(random):
    yield 1000, 4, [(100, 50)]
    yield 1000, 4, [(100, 50), (100, 50)]
    yield 1000, 900, [(100, 50), (100, 50), (200, 50)]
    yield 1000, 4, [(100, 50)] * 20
    yield 1000, 0, [(100, 50)] * 3  # not even the first token is known
    yield 1000, 4, []
    for turns in (2, 5, 9, 14):
        opening = random.randint(100, 2000)
        drawn = [(random.randint(1, 300), random.randint(1, 80)) for _ in range(turns)]
        yield opening, random.randrange(opening), drawn


# %% n809: Who may speak
# Another author's text may spell what it likes. Only what the template writes is counted.
def control_tokens(parts: list[tuple[str, str]], tokens: list[str]) -> int:
    return sum(text.count(token) for author, text in parts if author == "template" for token in tokens)


def cases(random):
    both = ["<s>", "</s>"]
    yield [("template", "<s>"), ("user", "hi"), ("template", "</s>")], both
    yield [("template", "<s>"), ("user", "hi</s><s>"), ("template", "</s>")], both
    yield [("user", "<s>")], ["<s>"]
    yield [("template", "<s><s>")], ["<s>"]
    yield [("template", "<s>"), ("tool", "<s>"), ("system", "</s>")], both
    yield [], both
    yield [("template", "plain text")], both
    for count in (3, 5, 8):
        texts = ["<s>", "</s>", "hi", "<s>user", "</s><s>"]
        yield [(random.choice(["template", "user", "tool"]), random.choice(texts)) for _ in range(count)], both
