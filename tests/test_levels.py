"""Laws of decoders trained in part: the map is the whole decoder's, and exactly its blocks get gradients."""

import pytest
import torch
from torch import nn

from handful.errors import UsageError
from handful.networks.levels import decode, level_strides, train_up_to
from handful.networks.parts import parts_of
from handful.networks.presets import preset
from handful.networks.unet import UNet
from handful.networks.vnet import VNet

NETWORKS = {
    "unet": lambda: UNet(dims=3, in_channels=1, classes=2, widths=(3, 4, 5, 6)),
    "vnet": lambda: VNet(
        dims=3, in_channels=1, classes=2, widths=(3, 4, 5, 6), blocks=(1, 1, 1, 1), dropout=0
    ),
}


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_deep_part_gives_the_same_map_and_is_what_trains(name: str, level: int) -> None:
    torch.manual_seed(0)
    parts = parts_of(NETWORKS[name]())
    train_up_to(parts, level=level)
    features = parts.encoder(torch.randn(2, 1, 8, 16, 24))
    found = decode(parts.decoder, features, level=level)
    assert found.shape == (2, parts.widths[level], *(side >> level for side in (8, 16, 24)))
    assert torch.equal(found, parts.decoder(features)[level])
    found.square().sum().backward()
    reached = {n for n, p in parts.decoder.named_parameters() if p.grad is not None}
    assert reached == {n for n, p in parts.decoder.named_parameters() if p.requires_grad} != set()


def test_the_published_network_of_sscl_has_a_level_for_each_block() -> None:
    parts = parts_of(preset("sscl", in_channels=1, classes=3))
    train_up_to(parts, level=3)
    with torch.no_grad():
        found = decode(parts.decoder, parts.encoder(torch.zeros(1, 1, 16, 32)), level=3)
    assert found.shape == (1, 512, 2, 4)


def test_strides_of_levels_are_those_of_their_maps() -> None:
    net = UNet(
        dims=3, in_channels=2, classes=2, widths=(3, 4, 5), strides=((1, 2, 2), (2, 2, 3)), norm="batch"
    )
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert level_strides(parts_of(net)) == [(1, 1, 1), (1, 2, 2), (2, 4, 6)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert level_strides(parts_of(NETWORKS["vnet"]()))[3] == (8, 8, 8)
    assert level_strides(parts_of(preset("sscl", in_channels=1, classes=3)))[-2:] == [(8, 8), (8, 8)]


def test_impossible_levels_are_said() -> None:
    parts = parts_of(NETWORKS["unet"]())
    with pytest.raises(UsageError, match=r"levels 0 \(the finest\) to 2"):
        train_up_to(parts, level=3)
    with pytest.raises(UsageError, match="cannot be trained in part"):
        train_up_to(parts._replace(decoder=nn.Identity()), level=1)
