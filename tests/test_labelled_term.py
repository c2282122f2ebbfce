"""Semi-supervised methods learn from labels as the control does, or, by settings, as SSL4MIS."""

import dataclasses
from functools import partial

import pytest
import torch

from handful.batches import IGNORE
from handful.errors import UsageError
from handful.losses.segmentation import deep_supervision, dice_and_cross_entropy, dice_ce
from handful.methods import load_method
from handful.networks.unet import UNet
from test_methods import phantom_source

NAMES = ("mean_teacher", "uamt", "ict", "entropy")
AS_SSL4MIS = {
    "dice_weight": 0.5, "cross_entropy_weight": 0.5, "balance": 0.0, "squared_dice": True, "dice_background": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "supervised"])
def test_the_labelled_term_is_ssl4mis_s_by_settings(name: str) -> None:
    torch.manual_seed(0)
    network = UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8))
    module = load_method(name)
    method = module.METHOD(network, module.Settings(**AS_SSL4MIS))
    batch = method.batch(dataclasses.replace(phantom_source(2), unlabelled=()))
    logits, label = network(batch.image), batch.label
    expected = 0.5 * dice_ce(logits, label, include_background=True, squared=True)
    torch.testing.assert_close(method.step(batch, 0.5).loss, expected)
    for field in AS_SSL4MIS:
        default = {**AS_SSL4MIS}
        del default[field]
        other = module.METHOD(network, module.Settings(**default))
        assert not torch.allclose(other.step(batch, 0.5).loss, expected), field


def test_the_control_is_nnu_net_s_by_default_to_the_bit_and_fine_tunes_as_sscl_by_settings() -> None:
    torch.manual_seed(0)
    network = UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)
    module = load_method("supervised")
    control = module.METHOD(network, module.Settings())
    batch = control.batch(phantom_source(2))
    both = partial(dice_and_cross_entropy, balance=0.25)
    expected = deep_supervision(network.deep(batch.image), batch.label, both).sum()
    assert torch.equal(control.step(batch, 0.5).loss, expected)
    sscl = module.METHOD(network, module.Settings(balance=0.0, squared_dice=True, dice_smooth=1.0))
    term = partial(dice_and_cross_entropy, squared=True, smooth=1.0)
    published = deep_supervision(network.deep(batch.image), batch.label, term).sum()
    torch.testing.assert_close(sscl.step(batch, 0.5).loss, published)
    assert not torch.allclose(published, expected)
    with pytest.raises(UsageError, match="dice_smooth"):
        module.Settings(dice_smooth=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_without_any_known_pixel_only_the_unlabelled_term_is_left(name: str) -> None:
    torch.manual_seed(0)
    network = UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8))
    module = load_method(name)
    method = module.METHOD(network, module.Settings(ramp=0.0))
    batch = method.batch(phantom_source(2))
    unknown = batch._replace(label=torch.full_like(batch.label, IGNORE))
    output = method.step(unknown, 0.5)
    left = output.terms.keys() - {"dice_loss", "cross_entropy"}
    assert len(left) == 1
    assert torch.equal(output.loss, output.terms[left.pop()])
