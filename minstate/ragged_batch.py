"""The ragged batch: what one forward pass takes from several sequences."""

from dataclasses import dataclass

import numpy as np
import torch

from minstate.sequence import Sequence


@dataclass(frozen=True)
class RaggedBatch:
    """T query tokens of B sequences, one after the other, without padding.

    Prefill, decode and verification differ only in how many query tokens a sequence has.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, each token's place in its own sequence
    slots: torch.Tensor  # [T] int64, where each token's K/V goes in the pool
    query_start: torch.Tensor  # [B + 1] int32: sequence b has the query tokens query_start[b] : query_start[b + 1]
    context_len: torch.Tensor  # [B] int32: tokens with K/V once this batch is written, its own query tokens included
    page_table: torch.Tensor  # [B, P] int32, rows padded with 0 beyond context_len
    logit_rows: torch.Tensor  # [R] int64: the query tokens whose logits are wanted

    @staticmethod
    def build(work: list[tuple[Sequence, int]], drafts: list[list[int]] | None = None) -> "RaggedBatch":
        """Take the next `count` tokens of each sequence, and give them slots in its page table.

        A draft, of tokens that may follow a sequence's log, is taken in behind its end. Logits are wanted at the log's
        end and at every token of the draft: earlier tokens' successors are known. Raises `OutOfPages`; the page tables
        then hold the tokens that they held.
        """
        token_ids, positions, slots, query_start, logit_rows = [], [], [], [0], []
        appended: list[tuple[Sequence, int]] = []
        try:
            for (sequence, count), draft in zip(work, drafts or [[]] * len(work), strict=True):
                start = sequence.kv_len
                slots += sequence.table.append(count + len(draft))
                appended.append((sequence, start))
                token_ids += [*sequence.log[start : start + count], *draft]
                positions += range(start, start + count + len(draft))
                query_start.append(len(token_ids))
                if start + count == len(sequence.log):
                    logit_rows += range(len(token_ids) - 1 - len(draft), len(token_ids))
        except BaseException:
            for sequence, start in appended:
                sequence.table.truncate(start)
            raise
        widest = max(len(sequence.table.pages) for sequence, _ in work)
        page_table = np.zeros((len(work), widest), dtype=np.int32)
        for row, (sequence, _) in zip(page_table, work, strict=True):
            row[: len(sequence.table.pages)] = sequence.table.pages
        return RaggedBatch(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            slots=torch.tensor(slots, dtype=torch.int64),
            query_start=torch.tensor(query_start, dtype=torch.int32),
            context_len=torch.tensor([sequence.kv_len for sequence, _ in work], dtype=torch.int32),
            page_table=torch.from_numpy(page_table),
            logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        )

    def alone(self, place: int) -> "RaggedBatch":
        """The part of sequence number `place`, as a batch of its own."""
        start, end = self.query_start[place : place + 2].tolist()
        rows = self.logit_rows
        return RaggedBatch(
            token_ids=self.token_ids[start:end],
            positions=self.positions[start:end],
            slots=self.slots[start:end],
            query_start=torch.tensor([0, end - start], dtype=torch.int32),
            context_len=self.context_len[place : place + 1],
            page_table=self.page_table[place : place + 1],
            logit_rows=rows[(start <= rows) & (rows < end)] - start,
        )
