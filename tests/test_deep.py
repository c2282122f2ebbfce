"""Logits of all levels: apart or together, and judged without training."""

import pytest
import torch
from torch import nn

from handful.networks.deep import deep_logits, deep_logits_of_both, judged
from handful.networks.unet import UNet


def network(norm: str = "instance", dims: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), norm=norm, deep_supervision=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_batches_of_any_size_get_the_levels_of_their_own(dims: int) -> None:
    net, first, second = network(dims=dims), torch.randn(2, 1, *[8] * dims), torch.randn(3, 1, *[8] * dims)
    together = deep_logits(net, first, second)
    apart = deep_logits(net, first, second, joint=False)
    assert [[len(level) for level in levels] for levels in together] == [[2, 2], [3, 3]]
    for a, b in zip(together, apart):
        for level, own in zip(a, b):
            torch.testing.assert_close(level, own)
    levels, others = deep_logits_of_both(net, first, second)
    torch.testing.assert_close(levels[1], together[0][1])
    torch.testing.assert_close(others, net(second))
    assert deep_logits_of_both(net, first, None)[1] is None


def test_batch_norm_tells_together_from_apart() -> None:
    net, first, second = network("batch"), torch.randn(2, 1, 8, 12), 5 + torch.randn(2, 1, 8, 12)
    together = deep_logits(net, first, second)[0][0]
    apart = deep_logits(net, first, second, joint=False)[0][0]
    torch.testing.assert_close(apart, net(first))
    assert (together - apart).abs().max() > 0.1


def test_a_network_without_levels_gives_one() -> None:
    layer = nn.Conv2d(1, 3, 1)
    ((only,),) = deep_logits(layer, torch.randn(2, 1, 4, 5))
    assert only.shape == (2, 3, 4, 5)


def test_judging_is_evaluation_without_a_trace() -> None:
    net = network("batch").train()
    net.encoder.eval()
    image = torch.randn(2, 1, 8, 12)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = judged(net, image)
    assert net.training
    assert not net.encoder.training
    assert net.decoder.training
    assert not logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(logits, net.eval()(image))
