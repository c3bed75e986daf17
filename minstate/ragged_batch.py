"""The ragged batch: what one forward pass takes, from any number of sequences."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from minstate.paged_kv import PageTable


class Chunk(NamedTuple):
    """One sequence's part in a batch: tokens that follow those in its page table."""

    table: PageTable
    token_ids: list[int]
    num_logits: int  # how many of the last tokens' logits are wanted


@dataclass(frozen=True)
class RaggedBatch:
    """T query tokens of B sequences, one sequence after the other, without padding.

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
    def build(chunks: list[Chunk]) -> "RaggedBatch":
        """Give the tokens of each chunk slots in its page table; `PageTable.commit` follows once K/V is written.

        Raises `OutOfPages`, and then no table has changed.
        """
        token_ids, positions, slots, query_start, logit_rows = [], [], [], [0], []
        try:
            for table, ids, num_logits in chunks:
                slots += table.append(len(ids))
                token_ids += ids
                positions += range(table.reserved - len(ids), table.reserved)
                query_start.append(len(token_ids))
                logit_rows += range(len(token_ids) - num_logits, len(token_ids))
        except BaseException:
            for table, *_ in chunks:
                table.truncate(table.length)
            raise
        page_table = np.zeros((len(chunks), max(len(table.pages) for table, *_ in chunks)), dtype=np.int32)
        for row, (table, *_) in zip(page_table, chunks, strict=True):
            row[: len(table.pages)] = table.pages
        return RaggedBatch(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            slots=torch.tensor(slots, dtype=torch.int64),
            query_start=torch.tensor(query_start, dtype=torch.int32),
            context_len=torch.tensor([table.reserved for table, *_ in chunks], dtype=torch.int32),
            page_table=torch.from_numpy(page_table),
            logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        )

    def rows_by_sequence(self) -> list[int]:
        """How many of the `logit_rows` belong to each sequence."""
        owner = torch.searchsorted(self.query_start[1:], self.logit_rows.to(torch.int32), right=True)
        return torch.bincount(owner, minlength=len(self.context_len)).tolist()

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
