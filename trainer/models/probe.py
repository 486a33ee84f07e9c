"""What a language model does with its input, asked of the model itself with a short text.

No list of families is kept: whether padding changes a text's states, and which weights play a part,
is seen in what the model computes.

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
"""Odd, and beyond the windows and strides that a smaller number would hide."""
_TOLERANCE = 2e-4
"""Largest difference of two states that are to be the same, as a share of their size (RMS)."""
_NAMES_SHOWN = 4


def check_padding(backbone: Backbone, name: str) -> None:
    """Refuse a language model whose states of a text depend on the padding beside it.

    A text's vector would then depend on what the text is batched with: the teachers' columns, the
    student's training and its evaluation would each see other vectors. One text is encoded alone,
    and padded beside a longer one: two forward passes of 7 and 34 tokens.

    Args:
        backbone: With its weights; left as it is.
        name: Where it came from, for the message.

    Raises:
        ModelError: The states differ, or the model cannot encode such texts.
    """
    if backbone.language_model.device.type == "meta":
        return  # sizes are asked for, there is nothing to compute with
    ids_UL, mask_UL = _texts(backbone)
    length = int(mask_UL[0].sum())
    if mask_UL.shape[1] == length:
        return
    with _at_rest(backbone), torch.no_grad():
        alone_LD = backbone(ids_UL[:1, :length], mask_UL[:1, :length])[0]
        padded_LD = backbone(ids_UL, mask_UL)[0, :length]
    difference = float((alone_LD - padded_LD).abs().max())
    size = float(alone_LD.square().mean().sqrt())
    # What is not finite is named by its rows where it is stored or trained on.
    if difference > _TOLERANCE * size:
        family = backbone.language_model.config.model_type
        raise ModelError(
            f"{name}: a backbone of type {family!r} does not leave padding out: the states of a "
            f"text of {length} tokens alone and padded to {mask_UL.shape[1]} differ by "
            f"{difference / size:.1e} of their size (at most {_TOLERANCE:.0e} is rounding), so a "
            "text's vector would depend on what it is batched with; take a backbone of another "
            "family"
        )


def freeze_idle(backbone: Backbone) -> str | None:
    """Freeze the weights of a language model that play no part in encoding texts.

    Some families have weights for inputs that are never given here (entities, global attention,
    segments) or fixed tables stored as weights. An optimizer would wait for their gradients.

    Args:
        backbone: With its weights, and with what is trained marked.

    Returns:
        What is said about it; None where every trained weight plays a part.

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
        f"{len(idle)} weights of the {backbone.language_model.config.model_type} backbone play no "
        f"part in encoding texts and stay as they are: {shown}{more}"
    )


def _texts(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """A text of 7 tokens, and one that is longer (as long as can be read); ids and mask."""
    config = backbone.language_model.config
    padding = getattr(config, "pad_token_id", None) or 0
    limit = backbone.max_tokens or _PADDED_TOKENS
    longest = min(_PADDED_TOKENS, limit)
    length = min(_TEXT_TOKENS, longest)
    step = max(1, (config.vocab_size - 2) // (longest + 1))
    words = [n for n in range(2, config.vocab_size, step) if n != padding][:longest] or [0]
    words *= -(-longest // len(words))  # again from the start where there are very few
    device = backbone.language_model.device
    texts_UL = torch.tensor([words[:longest]] * 2, device=device)
    mask_UL = torch.ones_like(texts_UL)
    texts_UL[0, length:] = padding
    mask_UL[0, length:] = 0
    return texts_UL, mask_UL.bool()


@contextmanager
def _at_rest(backbone: Backbone) -> Iterator[None]:
    """Without dropout, and leaving modes, random numbers and buffers as they were."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
