"""Identity of a column of frozen layers' states, which the layers above do not affect.

So models with the same frozen layers share one column, whatever was trained on top: the M teachers
of a post-training run, or students made of the same layers.
"""

import hashlib
import json
from typing import Any

import torch

from shards.files import fingerprint
from shards.texts import TextView
from trainer.models.backbone import Backbone
from trainer.models.layers import find_layers

FORMAT = 1

# Settings of a language model that do not change states below the cut.
_NO_PART = {
    "_name_or_path",
    "add_pooling_layer",
    "architectures",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "num_hidden_layers",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def frozen_identity(
    backbone: Backbone, texts: TextView, dtype: str, compute: str
) -> dict[str, Any]:
    """Return the identity of the states at a backbone's cut, without the article set.

    Args:
        backbone: Backbone that is cut, with its weights whole.
        texts: Texts that are read of an article.
        dtype: Storage type of the states.
        compute: Precision in which they are computed, ``fp32`` or ``bf16``.
    """
    assert backbone.split is not None
    damaged = texts.tokens.skipped_rows.tolist()
    return {
        "format": FORMAT,
        "frozen_weights_sha256": _weights_sha256(backbone, backbone.split.num_below),
        "frozen_layers": backbone.split.num_below,
        "backbone": _settings(backbone),
        "tokenizer_sha256": texts.tokens.tokenizer_sha256,
        "fields": list(texts.fields),
        "max_tokens": list(texts.limits),
        # Their texts are empty; tokenized again after a repair, they are not.
        "damaged_rows": fingerprint(damaged) if damaged else None,
        "dtype": dtype,
        "compute": compute,
    }


def _weights_sha256(backbone: Backbone, num_below: int) -> str:
    """Hash all weights of a backbone except those of the layers above the cut."""
    path, layers = find_layers(backbone.language_model)
    above = tuple(f"language_model.{path}.{n}." for n in range(num_below, len(layers)))
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        if not name.startswith(above):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(backbone: Backbone) -> dict[str, Any]:
    """Return a language model's settings that its weights do not determine, as JSON values."""
    config = backbone.language_model.config
    given: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    no_part = _NO_PART | {config.attribute_map.get(name, name) for name in _NO_PART}
    return {k: v for k, v in given.items() if k not in no_part and "dropout" not in k}
