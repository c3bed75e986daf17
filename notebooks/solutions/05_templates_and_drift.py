"""Solutions to the exercises of 05 · Templates and drift. Each section runs behind the cell it names."""


# %% c09: be the tokenizer
# The rank of a merge decides, and not where its pair stands in the text. A pair that is joined may make a new pair with
# its neighbour, so we look again after each round.
def bpe(text: str, merges: list[tuple[str, str]]) -> list[str]:
    pieces = list(text)
    while True:
        there = {(pieces[i], pieces[i + 1]) for i in range(len(pieces) - 1)}
        pair = next((merge for merge in merges if merge in there), None)
        if pair is None:
            return pieces
        joined = []
        for piece in pieces:
            if joined and (joined[-1], piece) == pair:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


# %% c51: the least work
# What both have in common is kept. A history that is there in full gives its last token back, to be forwarded again.
def least_work(log: list[int], given: list[int]) -> tuple[int, int]:
    kept = 0
    while kept < min(len(log), len(given) - 1) and log[kept] == given[kept]:
        kept += 1
    return kept, len(given) - kept


# %% c61: the price of a clock
# The first request is new as a whole. In each later one, all but the first `position` tokens stand behind the clock.
def price_of_a_clock(opening: int, position: int, turns: list[tuple[int, int]]) -> int:
    forwarded, known, prompt = 0, 0, opening
    for new, generated in turns:
        prompt += new
        forwarded += prompt - known
        prompt += generated
        known = position
    return forwarded


# %% n809: who may speak
# A stranger's text may spell what it likes. Only what the template writes is counted.
def control_tokens(parts: list[tuple[str, str]], tokens: list[str]) -> int:
    return sum(text.count(token) for author, text in parts if author == "template" for token in tokens)
