"""Right-padded token batches, and how to cut many sequences into batches of bounded size.

Padding is always on the right: with causal attention no real token then sees a pad, and positions count
from the left. A tokenizer's own padding side is never read or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import InputError
from emendo.shapes import Mask, TokenIds


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences padded on the right to one length.

    Args:
        input_ids: Token ids, shape ``[batch, seq]``.
        attention_mask: True at real tokens, shape ``[batch, seq]``.
    """

    input_ids: TokenIds
    attention_mask: Mask

    @classmethod
    @checked
    def pad(cls, sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> TokenBatch:
        """Pad `sequences` with `pad_id` on the right.

        Raises:
            InputError: There is no sequence, or one is empty.
        """
        if not sequences or not all(len(ids) for ids in sequences):
            raise InputError("a token batch needs at least one sequence, each with at least one token")
        lengths = torch.tensor([len(ids) for ids in sequences], device="cpu")
        width = int(lengths.max())
        rows = [[*ids, *[pad_id] * (width - len(ids))] for ids in sequences]
        mask = torch.arange(width, device="cpu")[None, :] < lengths[:, None]
        return cls(torch.tensor(rows, device=device), mask.to(device))

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of real tokens of each row."""
        return self.attention_mask.sum(dim=1)


@checked
def pack_by_tokens(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices so that each group, padded to its longest member, fits the budget.

    Groups hold similar lengths (longest first), which keeps padding small.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Most tokens of a padded group; a longer single sequence forms its own group.

    Returns:
        Groups of indices that together hold each index once.
    """
    groups: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * width <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = lengths[index]
    return groups
