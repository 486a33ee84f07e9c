"""A toy task with every shape of parameter that distributed training gets wrong, and data for it.

One encoder is called twice in a forward (titles, bodies), some parameters are frozen, one is read
directly from outside the forward of its module, sizes are odd so that shards need padding, two
groups have their own learning rates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.order import BatchRows, EpochOrder
from trainer.batch import Batch, as_tensor
from trainer.config.schema import OptimizerConfig
from trainer.tasks.base import MicroBatch
from trainer.tasks.texts import TextCounts

VOCABULARY = 53
WIDTH = 13
OUT = 7


@dataclass(frozen=True)
class ToyBatch(Batch):
    titles: torch.Tensor
    body: torch.Tensor
    is_empty: torch.Tensor
    poison: torch.Tensor


class ToyEncoder(nn.Module):
    """Frozen embedding, linear, norm, dropout, mean over tokens, linear: UL -> UE."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(WIDTH, OUT)
        self.embedding.weight.requires_grad_(False)
        self.norm.weight.requires_grad_(False)

    def forward(self, ids_UL: torch.Tensor) -> torch.Tensor:
        states = torch.tanh(self.hidden(self.embedding(ids_UL)))
        return self.out(self.dropout(self.norm(states)).mean(dim=1))


class ToyUser(nn.Module):
    """Holds the vector of an empty slot; the model reads it without calling this module."""

    def __init__(self) -> None:
        super().__init__()
        self.pad_doc = nn.Parameter(torch.randn(OUT) * 0.1)
        self.out = nn.Linear(OUT, OUT, bias=False)

    def forward(self, vectors_BE: torch.Tensor) -> torch.Tensor:
        return self.out(vectors_BE) + self.pad_doc


class ToyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.encoder = ToyEncoder(dropout)
        self.user = ToyUser()
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("positions", torch.arange(4), persistent=False)

    def fill(self, vectors_BE: torch.Tensor, is_empty_B: torch.Tensor) -> torch.Tensor:
        return torch.where(is_empty_B[:, None], self.user.pad_doc, vectors_BE)


class ToyTask(nn.Module):
    """Contrastive over each sample's own titles: independent of the other samples of a batch."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = ToyModel(dropout)
        self.projection = nn.Linear(OUT, OUT)

    def parameter_groups(self, config: OptimizerConfig) -> list[dict[str, Any]]:
        backbone = [p for p in self.model.encoder.parameters() if p.requires_grad]
        ids = {id(p) for p in backbone}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in ids]
        lr = config.lr if config.backbone_lr is None else config.backbone_lr
        return [
            {"params": backbone, "lr": lr, "name": "backbone"},
            {"params": rest, "lr": config.lr, "name": "rest"},
        ]

    def forward(self, batch: ToyBatch) -> dict[str, Any]:
        size = len(batch.body)
        titles = self.model.encoder(batch.titles.flatten(0, 1)).view(size, -1, OUT)
        body = self.model.fill(self.model.encoder(batch.body), batch.is_empty)
        body = self.model.user(self.projection(body)) * self.model.scale
        scores = torch.einsum("bce,be->bc", titles.float(), body.float())
        target = nn.functional.cross_entropy(scores, torch.zeros(size, dtype=torch.long))
        penalty = (body.float() ** 2).mean()
        loss = target + 0.1 * penalty + batch.poison.sum()
        return {
            "loss": loss,
            "losses": {"target": target.detach(), "penalty": penalty.detach()},
            "report": {"accuracy": (scores.argmax(1) == 0).float().mean()},
            "num_samples": size,
        }


class ToyData:
    """Arrays that are a pure function of rows and epochs.

    ``poisoned`` rows make the loss NaN.
    """

    def __init__(
        self, seed: int = 0, num_units: int = 150, poisoned: frozenset[int] = frozenset()
    ) -> None:
        counts = [num_units // 3, num_units // 3, num_units - 2 * (num_units // 3)]
        self.order = EpochOrder(counts, "toy", seed)
        self._poisoned = poisoned
        generator = np.random.Generator(np.random.Philox(7))
        self._titles = generator.integers(0, VOCABULARY, (num_units, 3, 5))
        self._bodies = generator.integers(0, VOCABULARY, (num_units, 11))
        # A sample's own title shares tokens with its body, so there is something to learn.
        self._titles[:, 0] = self._bodies[:, :5]

    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return "toy-data"

    def sharing_choice(self, *batch: int) -> None:
        """Nothing to choose."""

    def collate(self, batch_rows: BatchRows) -> MicroBatch:
        rows = batch_rows.rows
        poison = [float("nan") if int(row) in self._poisoned else 0.0 for row in rows]
        batch = ToyBatch(
            titles=as_tensor(self._titles[rows]),
            body=as_tensor(self._bodies[rows]),
            is_empty=as_tensor(rows % 5 == 0),
            poison=as_tensor(np.asarray(poison, dtype=np.float32)),
        )
        return MicroBatch(batch, TextCounts(tokens=3, slots=4))
