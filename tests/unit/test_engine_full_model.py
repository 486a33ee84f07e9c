"""The whole model of a sharded task: weights filled in one by one, ties and buffers kept."""

import torch
from helpers.toy import ToyModel
from torch import nn

from trainer.engine.full_model import FullModel


class Halves:
    """Stands for a ZeRO-3 backend: it alone knows the whole parameters."""

    def __init__(self, model):
        self._whole = {id(p): p.detach().clone() for p in model.parameters()}
        for parameter in model.parameters():
            parameter.data = torch.empty(0)

    def full_parameter(self, parameter):
        return self._whole[id(parameter)]


def test_sharded_model_comes_out_whole_again_and_again():
    torch.manual_seed(0)
    model = ToyModel(0.0)
    model.scale.fill_(2.0)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    full = FullModel(model, is_sharded=True, is_wanted=True)
    backend = Halves(model)
    for _ in range(2):
        whole = full.gather(backend)
        assert type(whole) is ToyModel
        assert whole.state_dict().keys() == expected.keys()
        for name, value in whole.state_dict().items():
            assert torch.equal(value, expected[name])
        # Not in the state dict, and still there.
        assert torch.equal(whole.positions, torch.arange(4))
        assert not whole.encoder.embedding.weight.requires_grad
    assert model.user.pad_doc.numel() == 0


def test_the_copy_that_waits_holds_no_weights():
    full = FullModel(ToyModel(0.0), is_sharded=True, is_wanted=True)
    assert {p.device.type for p in full._empty.parameters()} == {"meta"}


def test_tied_parameters_stay_tied():
    model = nn.Module()
    model.a, model.b = nn.Linear(3, 3), nn.Linear(3, 3)
    model.b.weight = model.a.weight
    full = FullModel(model, is_sharded=True, is_wanted=True)
    whole = full.gather(Halves(model))
    assert whole.a.weight is whole.b.weight


def test_unsharded_model_is_given_out_itself():
    model = ToyModel(0.0)
    assert FullModel(model, is_sharded=False, is_wanted=True).gather(None) is model
