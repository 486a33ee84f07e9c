"""UniLMv2, the paper's language model: its released weights in Hugging Face format.

Shape legend: A attention heads, D width.
"""

import io
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import BertConfig, BertTokenizer

from shards.errors import first_line
from shards.files import MAX_JSON_BYTES, open_regular, read_bytes
from trainer.config.bias import BIAS_KEY
from trainer.errors import DataError, ModelError
from trainer.models.relative_position import NUM_BUCKETS
from trainer.models.strict import save_weights

_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_TELL_SIZES = (
    BIAS_KEY,
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "encoder.layer.0.intermediate.dense.bias",
)


def convert_unilmv2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split the weights of a released UniLMv2 checkpoint.

    The release has one ``qkv_linear.weight`` [3D, D] per layer (queries, keys, values in this
    order) with ``q_bias`` and ``v_bias`` but without key bias (which cancels in the softmax, so
    zero replaces it), and the bias table as the weight [A, 32] of a Linear. Heads and pooler are
    left out.

    Args:
        state: Names to tensors, as released (``bert.…``).

    Returns:
        Names to tensors as in transformers' ``BertModel``, and the table as
        ``rel_pos_bias.weight`` [32, A].

    Raises:
        ModelError: A part is missing or has another shape than expected.
    """
    converted: dict[str, Tensor] = {}
    for full_name, tensor in state.items():
        if not full_name.startswith("bert.") or full_name.startswith("bert.pooler."):
            continue
        name = full_name.removeprefix("bert.")
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        stem, _, last = name.rpartition(".")
        if name.endswith("rel_pos_bias.weight"):
            if tensor.ndim != 2 or tensor.shape[1] != NUM_BUCKETS:
                raise ModelError(
                    f"{full_name} is {tuple(tensor.shape)}; expected (heads, {NUM_BUCKETS})"
                )
            converted[BIAS_KEY] = tensor.T
        elif name.endswith("qkv_linear.weight"):
            attention = stem.removesuffix(".qkv_linear")
            converted |= _split_attention(attention, tensor, state)
        elif last not in ("q_bias", "v_bias", "position_ids"):
            converted[name] = tensor
    missing = [name for name in _TELL_SIZES if name not in converted]
    if missing:
        raise ModelError(f"not a UniLMv2 checkpoint: it does not have {missing[0]}")
    # Clones, because the three parts of a fused weight would share storage, which safetensors
    # refuses.
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in converted.items()
    }


def save_unilmv2(checkpoint: str | Path, vocab: str | Path, folder: str | Path) -> Path:
    """Convert a released checkpoint to a folder for ``backbone.name`` and ``--tokenizer``.

    The checkpoint is read with ``weights_only``, so that no code in it runs. Sizes are those of its
    tensors; settings that these do not determine (GELU, dropout 0.1, epsilon 1e-12) are BERT's.

    Args:
        checkpoint: The released ``.bin`` file.
        vocab: Word pieces of the checkpoint, uncased, one per line.
        folder: Folder for configuration, weights and tokenizer; created if missing.

    Returns:
        The folder.

    Raises:
        ModelError: A file is unreadable, holds something else, or does not match the other.
    """
    weights = convert_unilmv2(_read_checkpoint(checkpoint))
    tokenizer = BertTokenizer(vocab=_read_vocab(vocab))
    config = _config_of(weights, tokenizer.pad_token_id)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{vocab} has {len(tokenizer)} word pieces, special ones included, but {checkpoint} "
            f"knows {config.vocab_size}: they do not belong together"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_weights(weights, target / "model.safetensors")
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _read_checkpoint(checkpoint: str | Path) -> dict[str, Tensor]:
    try:
        with open_regular(checkpoint) as raw, io.BufferedReader(cast(io.RawIOBase, raw)) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DataError as error:
        raise ModelError(f"{checkpoint} cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # an edited pickle raises errors of many kinds
        raise ModelError(
            f"{checkpoint} cannot be read as a checkpoint: {first_line(error)}"
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"{checkpoint} holds a {type(state).__name__}; expected a state dict")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _config_of(weights: dict[str, Tensor], pad_id: int) -> BertConfig:
    vocab_size, width = weights["embeddings.word_embeddings.weight"].shape
    num_heads = weights[BIAS_KEY].shape[1]
    if width % num_heads:
        raise ModelError(f"width {width} is not a multiple of the {num_heads} heads of the table")
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    return BertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=num_heads,
        intermediate_size=len(weights["encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(weights["embeddings.token_type_embeddings.weight"]),
        architectures=["BertModel"],
    )


def _read_vocab(vocab: str | Path) -> dict[str, int]:
    try:
        text = read_bytes(vocab, limit=MAX_JSON_BYTES).decode("utf-8")
        words = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    except (DataError, UnicodeDecodeError) as error:
        raise ModelError(f"{vocab} cannot be read as a vocabulary: {error}") from error
    return {word: number for number, word in enumerate(words)}


def _split_attention(attention: str, fused: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    biases = {}
    for part in ("q_bias", "v_bias"):
        bias = state.get(f"bert.{attention}.{part}")
        if bias is None or bias.numel() * 3 != fused.shape[0]:
            found = "absent" if bias is None else f"{tuple(bias.shape)}"
            raise ModelError(
                f"bert.{attention}.{part} is {found}; expected {fused.shape[0] // 3} numbers"
            )
        biases[part] = bias.flatten()
    query, key, value = fused.chunk(3, dim=0)
    return {
        f"{attention}.query.weight": query,
        f"{attention}.query.bias": biases["q_bias"],
        f"{attention}.key.weight": key,
        f"{attention}.key.bias": torch.zeros_like(biases["q_bias"]),
        f"{attention}.value.weight": value,
        f"{attention}.value.bias": biases["v_bias"],
    }
