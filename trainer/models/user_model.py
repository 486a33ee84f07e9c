"""User model: the clicked articles' vectors become one user vector.

Shape legend: B users, H history slots, E news width.
"""

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.models.configuration import RecommenderConfig


class UserModel(nn.Module):
    """A user encoder (:mod:`trainer.models.user_encoders`) over a history with empty slots.

    Treatment of empty history slots by ``history_padding``:

    - ``mask``: they are left out. A user without a history is encoded as one click on the learned
      vector ``pad_doc``, in training and in use, so cold users get a trained vector.
    - ``learned`` (released code): during training, ``pad_doc`` fills the empty slots and takes
      part; in use they are left out, and a user without a history is the zero vector. The released
      code uses its *teachers* as in training: pass ``mask_history=False``.
    """

    def __init__(self, config: RecommenderConfig):
        """Create the model from its configuration.

        Raises:
            ModelError: A layer of the user encoder has a name that is already used.
        """
        super().__init__()
        self.history_padding = config.history_padding
        width = config.news_dim
        self.pad_doc = nn.Parameter(torch.empty(width))
        self.encoder = config.user_part
        for name, layer in self.encoder.layers(width, config.query_dim).items():
            if hasattr(self, name) or not name.isidentifier():
                raise ModelError(
                    f"user_encoder {config.user_encoder}: a layer cannot be called {name!r}"
                )
            self.add_module(name, layer)

    def forward(
        self, history_BHE: Tensor, mask_BH: Tensor, mask_history: bool | None = None
    ) -> Tensor:
        """Encode users.

        Args:
            history_BHE: ``[B, H, E]`` vectors of the clicked articles; empty slots are not read.
            mask_BH: ``[B, H]``, nonzero in slots with a click.
            mask_history: Leave empty slots out (True), or fill them with ``pad_doc`` (False). None
                follows ``history_padding``: True, except during training with ``learned``.

        Returns:
            ``[B, E]`` in fp32 or wider.
        """
        if mask_history is None:
            mask_history = not (self.history_padding == "learned" and self.training)
        if history_BHE.shape[1] == 0:
            history_BHE = history_BHE.new_zeros(len(history_BHE), 1, history_BHE.shape[2])
            mask_BH = mask_BH.new_zeros(len(mask_BH), 1)
        filled_BH = mask_BH.bool()
        pad_doc = self.pad_doc.to(history_BHE.dtype)
        history_BHE = torch.where(filled_BH.unsqueeze(-1), history_BHE, pad_doc)
        empty_B1 = ~filled_BH.any(dim=1, keepdim=True)
        last_H = torch.arange(filled_BH.shape[1], device=filled_BH.device) == filled_BH.shape[1] - 1
        # At least one slot per user counts: a softmax over nothing is NaN.
        attended_BH = filled_BH | (empty_B1 & last_H)
        if not mask_history:
            attended_BH = torch.ones_like(filled_BH)
        users_BE = self.encoder.pool(dict(self.named_children()), history_BHE, attended_BH)
        if mask_history and self.history_padding == "learned":
            users_BE = users_BE.masked_fill(empty_B1, 0.0)
        return users_BE
