"""The language model alone, for plain transformers: no pooling, no user encoder, no head.

Its last hidden states equal those of the export's backbone.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import DataError, ModelError
from trainer.export.formats.base import ExportFormat
from trainer.export.formats.tnr import copy_entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainer.export.folder import Export

_CONFIG = "config.json"


class Transformers(ExportFormat):
    """Format of a folder for ``AutoModel`` and ``AutoTokenizer``."""

    summary = "the language model alone with its tokenizer, as AutoModel and AutoTokenizer open it"

    def problem(self, export: "Export") -> str | None:
        """Refuse a backbone with UniLMv2's bias, which transformers would silently leave out."""
        from trainer.config.bias import BIAS_KEY, settle_bias
        from trainer.config.schema import BackboneConfig, LanguageModelConfig
        from trainer.models.loading import load_news_config

        if export.is_language_model:
            found = LanguageModelConfig(backbone=BackboneConfig(name=str(export.folder)))
            is_biased = settle_bias(found).backbone.relative_position_bias
        else:
            is_biased = load_news_config(export.folder).relative_position_bias
        if not is_biased:
            return None
        return (
            "its backbone adds UniLMv2's relative position bias to attention scores "
            f"({BIAS_KEY}), which transformers does not support: opened there, the model would "
            "compute other states. Use --format tnr, or train from a backbone without "
            "relative_position_bias"
        )

    def write(self, export: "Export", folder: Path) -> None:
        """Write the language model and the tokenizer, and read both again.

        Raises:
            ModelError: The export is damaged or has no tokenizer, or transformers reads something
                else from the folder than was written.
        """
        from trainer.export.info import INFO, WEIGHTS
        from trainer.models.strict import save_weights

        model = _language_model(export)
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        save_weights(model.state_dict(), folder / WEIGHTS)
        # Older exports do not list their files.
        names = export.info.get("files") or [path.name for path in export.folder.iterdir()]
        tokenizer = {str(name) for name in names} - {_CONFIG, WEIGHTS, INFO}
        copy_entries(export.folder, (export.folder / name for name in tokenizer), folder)
        _check(export, model, folder)


def _language_model(export: "Export") -> "PreTrainedModel":
    from trainer.models.loading import load_language_model, load_language_model_config

    if export.is_language_model:
        export.check_weights()
        name = str(export.folder)
        return load_language_model(name, load_language_model_config(name))
    model = export.load_model()
    encoder = model.get_submodule("news_encoder") if export.is_recommender else model
    return encoder.get_submodule("backbone.language_model")  # type: ignore[return-value]


def _check(export: "Export", model: "PreTrainedModel", folder: Path) -> None:
    """Read a written folder as transformers does, and compare it with the export.

    Some families rename weights, and a tokenizer's class may depend on the model in the same
    folder.
    """
    import torch

    from shards.tokenizer import load_tokenizer, tokenizer_sha256
    from trainer.models.loading import load_language_model, load_language_model_config

    name = str(folder)
    found = load_language_model(name, load_language_model_config(name)).state_dict()
    for key, value in model.state_dict().items():
        if not torch.equal(found[key], value):
            raise ModelError(
                f"transformers reads other values of {key} than {export.folder} holds: a model of "
                f"type {model.config.model_type!r} cannot be written for it; use --format tnr"
            )
    try:
        tokenizer = load_tokenizer(name)
    except DataError as error:
        raise ModelError(str(error).replace(name, str(export.folder))) from error
    if tokenizer_sha256(tokenizer) != export.info["tokenizer_sha256"]:
        raise ModelError(
            f"transformers reads another tokenizer from the files of {export.folder} than the "
            "model was trained with: use --format tnr"
        )
