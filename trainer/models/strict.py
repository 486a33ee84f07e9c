"""Common base of both kinds of model: complete loading, saving, initial weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.errors import ModelError


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write tensors as a safetensors file for transformers, with normal file permissions.

    The package's own files are readable only by their owner, whatever the umask is.

    Raises:
        OSError: The file cannot be written.
    """
    file.touch()
    mode = file.stat().st_mode
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(whole, file, metadata={"format": "pt"})
    file.chmod(mode)


class StrictModel(PreTrainedModel):
    """A ``PreTrainedModel`` that loads completely or not at all, and never from a pickle."""

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load an exported folder, in fp32 unless another type is given.

        Args:
            pretrained_model_name_or_path: Folder with ``config.json`` and safetensors weights.
            *args: Passed on to transformers.
            **kwargs: Passed on to transformers.

        Returns:
            The model in eval mode (as in transformers), or with ``output_loading_info=True`` a pair
            of the model and transformers' loading information.

        Raises:
            ModelError: Weights are missing, left over or of another shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("dtype", torch.float32)
        # Mismatched sizes are reported below.
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                names = sorted(str(name) for name in info[kind])
                raise ModelError(
                    f"{pretrained_model_name_or_path}: {len(names)} {kind.replace('_', ' ')} "
                    f"({names[0]}"
                    f"{', …' if len(names) > 1 else ''}): its weights and its config.json do not "
                    "belong together"
                )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any) -> None:  # type: ignore[override]
        """Write ``config.json`` and ``model.safetensors`` in transformers' layout.

        Transformers' own function is not used: it imports DeepSpeed (seconds, and a warning) to
        unwrap a model that is never wrapped here.

        Args:
            save_directory: Folder to write to; created if missing.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = self.dtype
        config.save_pretrained(folder)
        save_weights(self.state_dict(), folder / "model.safetensors")

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise our layers with Xavier weights and zero biases.

        The language model has its own rule.
        """
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
