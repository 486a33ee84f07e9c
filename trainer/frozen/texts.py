"""Texts of a run that reads its frozen layers from a column: cut, fill, open, compare."""

import sys
from collections.abc import Callable

import numpy as np
import torch

from shards.columns import ColumnReader, removal_command
from shards.texts import TextView
from trainer.config.clicks import ClickConfig
from trainer.engine.signals import AFTER_BATCH, stop_on_signals
from trainer.errors import ConfigError, ModelError
from trainer.evaluate.encode import autocast, inference
from trainer.frozen.column import FROZEN
from trainer.frozen.fill import StateFiller
from trainer.frozen.identity import frozen_identity
from trainer.frozen.states import StateView
from trainer.hardware import pick_device
from trainer.models.layers import find_layers
from trainer.models.news_encoder import NewsEncoder
from trainer.teacher_server.cells import Target
from trainer.teacher_server.ranks import place

_COMPARED = 8
"""Number of texts that are computed both ways."""
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
"""Largest difference of two states, relative to the largest state, by storage type."""
_TOLERANCE_BF16 = 1e-1
"""The same for states computed in bf16, which has 8 bits."""


def compute_of(config: ClickConfig) -> str:
    """Return the precision of a run's frozen layers; fp16 becomes fp32.

    fp16 under autocast overflows where fp32 does not, and a column is computed only once.
    """
    return "bf16" if config.run.precision == "bf16" else "fp32"


def frozen_texts(
    config: ClickConfig,
    encoder: NewsEncoder,
    texts: TextView,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    tick: Callable[[], object] = lambda: None,
) -> StateView:
    """Cut a run's encoder above its frozen layers, and open their states of all articles.

    All ranks call this, and compute missing cells first.

    Args:
        config: The run; ``model.frozen_states`` names the storage type.
        encoder: Encoder with its initial weights, whole, on the CPU.
        texts: Texts that the encoder reads of an article.
        report: Receives lines for people, on rank 0.
        tick: Called after every batch.

    Raises:
        ConfigError: No layers are frozen.
        ModelError: The backbone cannot be cut, or a cut changes its states.
        DataError: The disk is too small.
        ColumnError: A state is not finite, or the column cannot be written.
        StopForRequeue: The process was asked to stop.
    """
    layers = len(find_layers(encoder.backbone.language_model)[1])
    trained = config.model.trainable_layers
    if trained is None or trained >= layers:
        raise ConfigError(
            f"model.frozen_states is {config.model.frozen_states}, but model.trainable_layers "
            f"{trained} freezes none of the backbone's {layers} layers: lower it, or set "
            "model.frozen_states to off"
        )
    encoder.backbone.cut(layers - trained)
    dtype, compute = config.model.frozen_states, compute_of(config)
    articles = texts.tokens.reader.shard_set
    target = Target(articles, FROZEN, frozen_identity(encoder.backbone, texts, dtype, compute))
    here = place()
    device = pick_device("auto", here.local_rank)
    torch.nn.Module.to(encoder, device)
    with stop_on_signals(boundary=AFTER_BATCH) as stop:
        StateFiller(
            target,
            encoder,
            texts,
            here=here,
            batch_tokens=config.data.batch_tokens or 4096,
            device=device,
            stop=stop,
            report=report,
            tick=tick,
        ).fill()
    view = StateView(ColumnReader.open(*target), texts.max_tokens)
    check_equal(encoder, texts, view, device)
    # The engine moves the encoder to its device: with ZeRO-3, no device holds it whole.
    torch.nn.Module.to(encoder, "cpu")
    return view


def check_equal(encoder: NewsEncoder, texts: TextView, view: StateView, device: str) -> None:
    """Compare some texts' last states from the column with those of the whole model.

    Raises:
        ModelError: The states differ: the layers of this family pass on more than their states, or
            the column is damaged.
    """
    made_from = view.reader.made_from
    rows = np.unique(np.linspace(0, view.reader.num_rows - 1, _COMPARED).astype(np.int64))
    ids, mask = (torch.from_numpy(array).to(device) for array in texts.batch(rows))
    states = torch.from_numpy(view.batch(rows)[0]).to(device)
    remove = removal_command(view.reader.shard_set, view.reader.folder)
    anew = f"`{remove}` removes it, and it is made again"
    if states.shape[:2] != ids.shape:
        raise ModelError(
            f"{view.reader.folder} holds texts of other lengths than the token column "
            f"{texts.tokens.folder.name}; {anew}"
        )
    with inference(encoder), autocast(device, str(made_from["compute"])):
        whole = encoder.backbone(ids, mask.bool())[mask.bool()].float()
        ours = encoder.backbone.above(states.float(), mask.bool())[mask.bool()].float()
    difference = float((whole - ours).abs().max() / whole.abs().max())
    most = _TOLERANCE[str(made_from["dtype"])]
    if made_from["compute"] == "bf16":
        most = max(most, _TOLERANCE_BF16)
    if not difference <= most:
        family = encoder.config.language_model.model_type
        raise ModelError(
            f"a backbone of type {family!r} gives other states from {view.reader.folder} than as a "
            f"whole: they differ by {difference:.2g} of the largest, expected at most {most:g}. "
            "Either its layers pass on more than their states: set model.frozen_states to off; or "
            f"the column is damaged: {anew}"
        )
