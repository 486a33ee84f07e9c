"""Probes of a language model: what it does with its input, tested on a short text.

There is no list of families: the probes observe whether padding changes a text's states, and which
weights affect the output.

Shape legend: U texts, L tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.errors import ModelError
from trainer.models.backbone import Backbone

_TEXT_TOKENS = 7
_PADDED_TOKENS = 17
"""Odd, and larger than windows and strides that a smaller number would hide."""
_TOLERANCE = 2e-4
"""Largest difference between two states that should be equal, relative to their size (RMS)."""
_NAMES_SHOWN = 4


def check_padding(backbone: Backbone, name: str) -> None:
    """Refuse a language model whose states of a text depend on padding.

    A text's vector would then depend on the other texts of its batch: the teachers' columns, the
    student's training and its evaluation would all see different vectors. One text is encoded
    alone, and padded next to a longer one: two forward passes of 7 and 34 tokens.

    Args:
        backbone: Backbone with its weights; it stays unchanged.
        name: Origin of the backbone, for the message.

    Raises:
        ModelError: The states differ, or the model cannot encode such texts.
    """
    if backbone.language_model.device.type == "meta":
        return  # only sizes are computed; there are no values
    ids_UL, mask_UL = _texts(backbone)
    length = int(mask_UL[0].sum())
    if mask_UL.shape[1] == length:
        return
    with _at_rest(backbone), torch.no_grad():
        alone_LD = backbone(ids_UL[:1, :length], mask_UL[:1, :length])[0]
        padded_LD = backbone(ids_UL, mask_UL)[0, :length]
    difference = float((alone_LD - padded_LD).abs().max())
    size = float(alone_LD.square().mean().sqrt())
    # Values that are not finite are reported by row where they are stored or trained on.
    if difference > _TOLERANCE * size:
        family = backbone.language_model.config.model_type
        raise ModelError(
            f"{name}: a backbone of type {family!r} does not ignore padding: the states of a text "
            f"of {length} tokens alone and padded to {mask_UL.shape[1]} differ by "
            f"{difference / size:.1e} of their size (at most {_TOLERANCE:.0e} is rounding), so a "
            "text's vector would depend on the other texts of its batch; use a backbone of "
            "another family"
        )


def freeze_idle(backbone: Backbone) -> str | None:
    """Freeze the weights of a language model that do not affect its output.

    Some families have weights for inputs that this project never gives (entities, global attention,
    segments) or fixed tables stored as weights. An optimizer would wait for their gradients.

    Args:
        backbone: Backbone with its weights, whose trained parameters are marked.

    Returns:
        A line to print; None if every trained weight takes part.

    Raises:
        ModelError: The model cannot encode a short text.
    """
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    if not trained or backbone.language_model.device.type == "meta":
        return None
    reached: set[str] = set()

    def reach(parameter: Tensor, name: str) -> None:
        reached.add(name)
        parameter.grad = None  # at once: all gradients together are as large as the model

    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: reach(p, name))
        for name, parameter in trained.items()
    ]
    ids_UL, mask_UL = _texts(backbone)
    try:
        with _at_rest(backbone), torch.enable_grad():
            states_ULD = backbone(ids_UL, mask_UL)
            if states_ULD.requires_grad:
                states_ULD.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    idle = [name for name in trained if name not in reached]
    for name in idle:
        trained[name].requires_grad_(False)
    if not idle:
        return None
    shown = ", ".join(name.removeprefix("language_model.") for name in idle[:_NAMES_SHOWN])
    more = f" and {len(idle) - _NAMES_SHOWN} more" if len(idle) > _NAMES_SHOWN else ""
    return (
        f"{len(idle)} weights of the {backbone.language_model.config.model_type} backbone take no "
        f"part in encoding texts and stay unchanged: {shown}{more}"
    )


def _texts(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return ids and mask of a text of 7 tokens and a longer one."""
    config = backbone.language_model.config
    padding = getattr(config, "pad_token_id", None) or 0
    limit = backbone.max_tokens or _PADDED_TOKENS
    longest = min(_PADDED_TOKENS, limit)
    length = min(_TEXT_TOKENS, longest)
    step = max(1, (config.vocab_size - 2) // (longest + 1))
    words = [n for n in range(2, config.vocab_size, step) if n != padding][:longest] or [0]
    words *= -(-longest // len(words))  # ids repeat if the vocabulary is very small
    device = backbone.language_model.device
    texts_UL = torch.tensor([words[:longest]] * 2, device=device)
    mask_UL = torch.ones_like(texts_UL)
    texts_UL[0, length:] = padding
    mask_UL[0, length:] = 0
    return texts_UL, mask_UL.bool()


@contextmanager
def _at_rest(backbone: Backbone) -> Iterator[None]:
    """Turn dropout off; restore modes, random states and buffers afterwards."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
