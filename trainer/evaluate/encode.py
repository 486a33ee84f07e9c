"""Article vectors of a news encoder, in batches of similar lengths under a token budget.

Legend: N articles, U articles of one batch, L tokens, D width of the language model, E news width.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from shards.length_groups import length_groups
from shards.progress import Progress
from trainer.frozen.states import StateView
from trainer.hardware import warn_if_emulated

if TYPE_CHECKING:
    from shards.texts import TextView


def encode_articles(
    model: nn.Module,
    texts: TextView | StateView,
    rows: np.ndarray,
    *,
    pad_to_max: bool = False,
    batch_tokens: int = 16384,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    progress: bool = False,
    on_batch: Callable[[int], None] | None = None,
    batches: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Encode the texts of some articles.

    Batches hold texts of similar lengths, the longest first, so that a batch that does not fit into
    memory fails at the start; the result is in the order of ``rows``.

    Args:
        model: A ``NewsEncoder`` or a ``Recommender``, already on ``device``.
        texts: Texts that the model reads of an article, or hidden states of its frozen layers: then
            only the layers above are computed, and the model's backbone is cut there.
        rows: int64[N] article rows, in any order.
        pad_to_max: Pad every text to ``texts.max_tokens``, for models whose pooling reads padding;
            not for states.
        batch_tokens: Tokens per forward pass; a single text is always allowed.
        device: Device of the batches.
        precision: ``fp32``, or ``bf16`` for autocast.
        progress: Show a bar or progress lines.
        on_batch: Called after each batch with its number of tokens, without padding; an exception
            that it raises ends the work.
        batches: Encode only these batches of :func:`article_batches`; the other vectors are zeros.

    Returns:
        float32[N, E] on the CPU.
    """
    rows = np.asarray(rows, dtype=np.int64)
    encode = getattr(
        model, "encode_states" if isinstance(texts, StateView) else "encode_news", model
    )
    if batches is None:
        batches = article_batches(texts, rows, pad_to_max=pad_to_max, batch_tokens=batch_tokens)
    total = sum(len(places) for places in batches)
    vectors_NE: np.ndarray | None = None
    with (
        inference(model),
        autocast(device, precision),
        bar(total, "encode articles", "articles", progress) as shown,
    ):
        for places in batches:
            if isinstance(texts, StateView):
                read, mask_UL = texts.batch(rows[places])  # states [U, L, D] instead of ids
            else:
                read, mask_UL = texts.batch(rows[places], pad_to_max)
            out_UE = encode(torch.from_numpy(read).to(device), torch.from_numpy(mask_UL).to(device))
            if vectors_NE is None:
                vectors_NE = np.zeros((len(rows), out_UE.shape[1]), dtype=np.float32)
            vectors_NE[places] = out_UE.float().cpu().numpy()
            shown.update(len(places))
            if on_batch is not None:
                on_batch(int(mask_UL.sum()))
    if vectors_NE is None:
        return np.zeros((len(rows), int(getattr(model.config, "news_dim", 0))), dtype=np.float32)
    return vectors_NE


def article_batches(
    texts: TextView | StateView,
    rows: np.ndarray,
    *,
    pad_to_max: bool = False,
    batch_tokens: int = 16384,
) -> list[np.ndarray]:
    """Return the batches of :func:`encode_articles`: places in ``rows``, int64[u] each."""
    if pad_to_max:
        lengths = np.full(len(rows), texts.max_tokens, dtype=np.int64)
    else:
        lengths = texts.lengths(rows)
    return length_groups(lengths, batch_tokens)


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Set eval mode without gradients, and restore the model's own mode afterwards.

    Inference mode is not used: tensors that a family keeps from a forward pass (tables of
    positions) would then be unusable in training.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """Return autocast to bf16 on a device, or a context without effect for ``fp32``.

    If the device only emulates bf16, a warning is printed once.
    """
    warn_if_emulated(precision, str(device), "precision")
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


def bar(total: int, what: str, unit: str, show: bool) -> Progress:
    """Return a progress display that is shown, or only counted."""
    if show:
        return Progress(total, what, unit)
    return Progress(total, "", unit, stream=io.StringIO())  # counts without output
