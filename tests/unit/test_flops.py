"""The FLOPs formula against torch's own counter, and peaks of devices by name."""

import numpy as np
import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.build import build_news_encoder
from trainer.monitor.flops import peak_of, text_flops
from trainer.tasks.texts import SubBatch, Texts, count_texts

TOLERANCE = 0.04
"""Left out of the formula: the sums of the pooling, and first layers without a gradient below."""


@pytest.mark.parametrize("frozen_layers", [0, 2, 4])
def test_flops_of_a_step_are_what_torch_counts(frozen_layers):
    size = {"hidden_size": 64, "intermediate_size": 256}
    encoder = build_news_encoder(tiny_model(size), vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    language_model = encoder.backbone.language_model
    # The counter does not see into the fused attention of a CPU.
    language_model.set_attn_implementation("eager")
    if frozen_layers:
        language_model.requires_grad_(False)
        for layer in language_model.encoder.layer[frozen_layers:]:
            layer.requires_grad_(True)
    ids, mask = texts([32] * 6, 32)
    with FlopCounterMode(display=False) as counter:
        encoder(ids, mask).sum().backward()
    flops = text_flops(encoder)
    assert flops is not None
    found = flops.of(6, 6 * 32, 6 * 32**2)
    assert found == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_texts_are_counted_without_padding_and_repetitions():
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
    part = SubBatch(torch.zeros(3, 4), torch.from_numpy(mask))
    found = count_texts(Texts((part,), place=torch.tensor([0, 1])))
    assert (found.texts, found.tokens, found.tokens_squared) == (2, 5, 4 + 9)
    assert (found.rows, found.row_tokens, found.slots, found.slots_squared) == (3, 8, 12, 48)
    assert found.padding == pytest.approx(1 - 5 / 12)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA L40S", "fp16", 362.0),
        ("NVIDIA L40", "fp16", None),
    ],
)
def test_peak_by_name(name, precision, peak):
    assert peak_of(name, precision) == peak
