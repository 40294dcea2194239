"""One text batch run again and again while its upper blocks change: each pass starts at the lowest changed block.

Writing an edit layer by layer reads activations after every write. What enters the block that was written is what
entered it before, so the blocks below need not run again. The decoder's own `forward` still runs, with its masks and
position embeddings: the lower blocks give what was kept and compute nothing. The result is that of a whole pass bit for
bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from emendo.models.batch import TokenBatch
from emendo.models.editable import EditableModel
from emendo.models.hooks import Capture, StopForwardError, block_output, recording


class ResumedPass:
    """Forward passes of one batch, of which the next starts where the last one was told to.

    Args:
        batch: Right-padded tokens.
    """

    def __init__(self, batch: TokenBatch) -> None:
        self.batch = batch
        self._start, self._entering = 0, None

    def run(
        self,
        lm: EditableModel,
        *,
        keys: Sequence[int] = (),
        mlp_out: Sequence[int] = (),
        resid: Sequence[int] = (),
        resume: int | None = None,
    ) -> Capture:
        """A forward pass that records activations as `EditableModel.run` does.

        Args:
            lm: The model; below the block that the last call named it is as it was then.
            keys: Layers whose down-projection inputs to record.
            mlp_out: Layers whose down-projection outputs to record.
            resid: Layers whose block outputs to record.
            resume: The lowest block that changes before the next pass, which then starts there. What enters it is
                kept, ``batch · seq · d_model`` numbers. None: nothing is kept, and the next pass is a whole one.

        All layers that are asked for have to lie at or above the block that the last call named.
        """
        top, capture = max(*keys, *mlp_out, *resid, -1), Capture()
        kept: list[Any] = []
        stopped = suppress(StopForwardError)
        with (
            lm.isolated() as own,
            torch.no_grad(),
            _skipping(own.blocks, self._start, self._entering),
            _keeping(own.blocks, resume, kept),
            stopped,
            recording(own, capture, keys, mlp_out, resid, stop=top),
        ):
            batch = self.batch
            own.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
        self._start, self._entering = (resume or 0, kept[0]) if kept else (0, None)
        return capture


@contextmanager
def _skipping(blocks: nn.ModuleList, start: int, entering: Any) -> Iterator[None]:
    """Blocks below `start` compute nothing: each gives `entering`, which is what the last of them gave before."""
    skipped = list(blocks)[:start]
    own = [vars(block).get("forward") for block in skipped]  # of a model that is spread over devices
    try:
        for block in skipped:
            vars(block)["forward"] = lambda *args, **kwargs: entering
        yield
    finally:
        for block, forward in zip(skipped, own, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


@contextmanager
def _keeping(blocks: nn.ModuleList, resume: int | None, kept: list[Any]) -> Iterator[None]:
    """The output of the block below `resume` is put into `kept`; the first block's input is cheap to make again."""
    if not resume:
        yield
        return

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        # A copy: some families add onto this very tensor.
        hidden: Tensor = block_output(out).detach().clone()
        kept.append((hidden, *out[1:]) if isinstance(out, tuple) else hidden)

    # Before the hooks that the block has already, which run on what it gives in the next pass as well.
    handle = blocks[resume - 1].register_forward_hook(keep, prepend=True)
    try:
        yield
    finally:
        handle.remove()
