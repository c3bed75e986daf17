"""Prompt lookup: the index finds the longest and latest match, at a cost that does not depend on the log's length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate import BrokenInvariant, prompt_lookup
from minstate.prompt_lookup import CANDIDATES, LONGEST_MATCH, NGRAM, NO_MATCH, Corpus, Match, NgramIndex

LETTERS = st.integers(1, 2)
TOKENS = st.one_of(
    st.lists(LETTERS, max_size=12),
    st.lists(st.integers(1, 4), max_size=30),
    st.builds(lambda part, times: part * times, st.lists(LETTERS, min_size=1, max_size=5), st.integers(1, 12)),
)


def oracle(tokens, tail):
    """All earlier occurrences, compared token by token."""

    def agreement(position):
        length = 0
        while length < min(position, len(tail), prompt_lookup.LONGEST_MATCH):
            if tokens[position - length - 1] != tail[-length - 1]:
                break
            length += 1
        return length

    ends = [p for p in range(1, len(tokens)) if agreement(p) >= NGRAM][-prompt_lookup.CANDIDATES :]
    return max((Match(agreement(p), p) for p in ends), default=NO_MATCH)


def index_of(tokens):
    index = NgramIndex()
    index.extend(tokens)
    return index


@pytest.mark.parametrize("longest, candidates", [(LONGEST_MATCH, CANDIDATES), (5, 3), (4, 1)])
def test_the_longest_match_is_found_and_the_latest_of_equally_long_ones(longest, candidates, monkeypatch):
    monkeypatch.setattr(prompt_lookup, "LONGEST_MATCH", longest)
    monkeypatch.setattr(prompt_lookup, "CANDIDATES", candidates)
    found = set()

    @given(
        st.lists(st.one_of(TOKENS, st.integers(0, 60), st.just("copy")), min_size=1, max_size=8),
        st.one_of(st.none(), TOKENS),
    )
    def compare(changes, draft):
        index, tokens = NgramIndex(), []
        for change in changes:
            if isinstance(change, list):
                tokens += change
                index.extend(tokens)
            elif change == "copy":
                left, index = index, index.copy()
                left.extend([*tokens, 1, 2, 1, 2, 1, 2])  # a change of one copy leaves the other as it is
            else:
                length = max(0, len(tokens) - change)
                index.truncate(tokens, length)
                del tokens[length:]
            index.check(tokens)
            tail = tokens + (draft or [])
            match = index.find(tokens, tail[-LONGEST_MATCH:])
            assert match == oracle(tokens, tail)
            assert match == NO_MATCH or (NGRAM <= match.length <= longest and match.position < len(tokens))
            found.add(match.length)

    compare()
    assert found >= {0, NGRAM, 3, 4} and max(found) >= min(longest, 12), "short matches, long ones, and none"


@given(TOKENS, TOKENS, st.integers(0, 40))
def test_truncation_leaves_the_index_of_the_shorter_list(tokens, more, length):
    tokens, length = tokens + more, min(length, len(tokens + more))
    index = index_of(tokens)
    index.truncate(tokens, length)
    fresh = index_of(tokens[:length])
    assert (index._last, index._before) == (fresh._last, fresh._before)


@given(TOKENS, st.integers(0, 20))
def test_tokens_that_were_never_indexed_can_be_truncated(tokens, late):
    """An aborted turn may remove its input from the log before the index has seen that input."""
    index = index_of(tokens)
    longer = tokens + [1, 2, 1, 2, 1] * late
    index.truncate(longer, len(tokens))
    index.check(tokens)
    assert index.find(tokens, tokens[-LONGEST_MATCH:]) == oracle(tokens, tokens)


def test_an_index_of_another_list_is_noticed():
    index = index_of([1, 2, 3, 4, 5])
    with pytest.raises(BrokenInvariant):
        index.check([1, 2, 4, 4, 5])
    index._last[1, 2, 3] = 4
    with pytest.raises(BrokenInvariant):
        index.check([1, 2, 3, 4, 5])


class Counted(list):
    """A list that counts how many of its items are read."""

    reads = 0

    def __getitem__(self, where):
        found = super().__getitem__(where)
        self.reads += len(found) if isinstance(where, slice) else 1
        return found


@pytest.mark.parametrize("block", [[1], [1, 2, 1, 1, 2], [1] * LONGEST_MATCH + [2], [1] * (LONGEST_MATCH - 1) + [3, 4]])
def test_work_does_not_grow_with_the_list(block):
    reads = []
    for blocks in (100, 3000):
        tokens = Counted(block * blocks)
        index = index_of(tokens)
        assert tokens.reads <= NGRAM * len(tokens), "each token is indexed once"
        work = []
        for tail in (
            block * LONGEST_MATCH,
            [9] + block[:-1] * LONGEST_MATCH,
            [8] * LONGEST_MATCH,
            [5, *block, *block, 1, 1, 1],
        ):
            tokens.reads = 0
            index.find(tokens, tail[-LONGEST_MATCH:])
            work.append(tokens.reads)
        tokens.reads = 0
        tokens += [1, 2, 3, 4, 5, 6]
        index.extend(tokens)
        index.truncate(tokens, len(tokens) - 6)
        work.append(tokens.reads)
        assert max(work[:-1]) <= CANDIDATES * (LONGEST_MATCH + 1) and work[-1] <= 2 * NGRAM * 7
        reads.append(work)
    assert reads[0] == reads[1]


def test_at_most_candidates_occurrences_are_compared():
    """The best occurrence is not found if `CANDIDATES` others are more recent. That is the price of the bound."""
    tokens = [7, 7, 1, 2, 3, 50] + [8, 1, 2, 3, 60] * (CANDIDATES - 1)
    assert index_of(tokens).find(tokens, [7, 7, 1, 2, 3]) == Match(5, 5)
    tokens += [8, 1, 2, 3, 60]
    assert index_of(tokens).find(tokens, [7, 7, 1, 2, 3]).length == 3


@given(st.lists(TOKENS, min_size=1, max_size=6), TOKENS, st.integers(1, 20))
def test_documents_of_a_corpus_never_run_into_each_other(documents, tail, count):
    corpus = Corpus()
    for document in documents:
        corpus.add(document)
    match = corpus.index.find(corpus.tokens, tail[-LONGEST_MATCH:])
    read = corpus.read(match.position, count) if match.length else []
    assert len(read) <= count and prompt_lookup.END not in read
    quoted = tail[len(tail) - match.length :] + read
    assert any(document[i : i + len(quoted)] == quoted for document in documents for i in range(len(document) + 1)), (
        "the match and the guess are one piece of one document"
    )
    assert not match.length or len(read) == count or any(d[-len(quoted) :] == quoted for d in documents)


def test_a_document_that_ends_does_not_hide_one_that_goes_on():
    corpus = Corpus()
    corpus.add([1, 2, 3, 4])
    corpus.add([9, 1, 2, 3])
    match = corpus.index.find(corpus.tokens, [1, 2, 3])
    assert corpus.read(match.position, 9) == [4]


def test_a_corpus_is_bounded_and_keeps_the_latest_documents():
    corpus = Corpus(limit=40)
    for start in range(10, 3000, 6):
        document = list(range(start, start + 6))
        corpus.add(document)
        assert len(corpus.tokens) <= 80 and len(corpus.index._before) <= 80 and len(corpus.index._last) <= 80
        corpus.index.check(corpus.tokens)
        match = corpus.index.find(corpus.tokens, document[:3])
        assert corpus.read(match.position, 9) == document[3:]
        recent = list(range(start - 24, start - 18))
        if start > 40:
            match = corpus.index.find(corpus.tokens, recent[:3])
            assert corpus.read(match.position, 9) == recent[3:], "the last forty tokens are always kept"
    assert corpus.index.find(corpus.tokens, [10, 11, 12]) == NO_MATCH


def test_the_cost_of_adding_a_document_depends_on_its_own_tokens_only():
    """The index is rebuilt so rarely that the cost per token is constant."""
    corpus, indexed = Corpus(limit=100), 0
    extend = NgramIndex.extend

    def counted(self, tokens):
        nonlocal indexed
        before = len(self._before)
        extend(self, tokens)
        indexed += len(self._before) - before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NgramIndex, "extend", counted)
        for start in range(500):
            corpus.add([start, 1, 2, 3])
    assert indexed <= 3 * 500 * 5


def test_the_same_document_is_added_once():
    corpus = Corpus()
    for _ in range(3):
        corpus.add_once([1, 2, 3, 4])
        corpus.add_once([1, 2, 3, 5])
    assert corpus.tokens == [1, 2, 3, 4, prompt_lookup.END, 1, 2, 3, 5, prompt_lookup.END]
    corpus.add([1, 2, 3, 4])
    assert len(corpus.tokens) == 15
