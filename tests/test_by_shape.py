"""Laws of entering another network: the same function arrives, counted; what would be a guess is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handful.errors import DataError, UsageError
from handful.networks.by_shape import load_encoder_by_shape
from handful.networks.unet import UNet

LEAKY = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
AFFINE = ("instance", {"affine": True})


def mine(**others: Any) -> nn.Module:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"dims": 3, "in_channels": 2, "classes": 3, "widths": (4, 6, 10)}
    encoder = UNet(**(sizes | others)).encoder
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():  # norms that do something
            if tensor.ndim == 1 and "running" not in name:
                tensor.uniform_(0.5, 1.5)
    return encoder


def dynunet(**others: Any) -> nn.Module:
    from monai.networks.nets import DynUNet

    sizes: dict[str, Any] = {
        "spatial_dims": 3, "in_channels": 2, "out_channels": 3, "kernel_size": (3, 3, 3), "strides": (1, 2, 2),
        "upsample_kernel_size": (2, 2), "filters": (4, 6, 10), "norm_name": AFFINE, "act_name": LEAKY,
    }  # fmt: skip
    return DynUNet(**(sizes | others))


def dynunet_levels(network: Any, image: Tensor) -> list[Tensor]:
    maps = [network.input_block(image)]
    for block in (*network.downsamples, network.bottleneck):
        maps.append(block(maps[-1]))
    return maps


def basic_unet(**others: Any) -> nn.Module:
    from monai.networks.nets import BasicUNet

    sizes: dict[str, Any] = {
        "spatial_dims": 3, "in_channels": 2, "out_channels": 3, "features": (4, 6, 10, 12, 14, 4),
        "act": LEAKY, "norm": AFFINE,
    }  # fmt: skip
    return BasicUNet(**(sizes | others))


def basic_unet_levels(network: Any, image: Tensor) -> list[Tensor]:
    maps = [network.conv_0(image)]
    for block in (network.down_1, network.down_2, network.down_3, network.down_4):
        maps.append(block(maps[-1]))
    return maps


Levels = Callable[[Any, Tensor], list[Tensor]]


@pytest.mark.parametrize(
    ("encoder", "network", "levels"),
    [
        ({}, dynunet, dynunet_levels),
        (
            {"widths": (4, 6, 10, 12, 14), "style": {"bias": True, "down": "pool"}},
            basic_unet,
            basic_unet_levels,
        ),
    ],
    ids=["DynUNet", "BasicUNet"],
)
def test_a_network_of_monai_sees_what_the_encoder_sees(
    encoder: dict[str, Any], network: Callable[[], nn.Module], levels: Levels
) -> None:
    """Every tensor of the encoder has a place, and every level gives the same feature map of the same image."""
    ours, theirs = mine(**encoder).eval(), network().eval()
    image = torch.randn(2, 2, 16, 32, 48)
    with torch.no_grad():
        before = levels(theirs, image)
        report = load_encoder_by_shape(theirs, ours.state_dict())
        expected, after = ours(image), levels(theirs, image)
    assert len(report.matched) == len(ours.state_dict())
    assert report.missing == ()
    assert len(after) == len(expected)
    for old, new, want in zip(before, after, expected, strict=True):
        assert not torch.allclose(old, want, atol=1e-2)
        assert torch.allclose(new, want, atol=1e-4)


def test_batch_norms_arrive_with_their_statistics() -> None:
    ours = mine(norm="batch").train()
    ours(torch.randn(2, 2, 8, 12, 16))
    theirs = dynunet(norm_name="batch").eval()
    report = load_encoder_by_shape(theirs, ours.state_dict())
    assert report.matched["levels.0.0.1.running_var"] == "input_block.norm1.running_var"
    image = torch.randn(1, 2, 8, 16, 24)
    with torch.no_grad():
        assert torch.allclose(dynunet_levels(theirs, image)[-1], ours.eval()(image)[-1], atol=1e-5)


def test_the_rest_of_the_network_stays_as_it_was_and_is_named() -> None:
    theirs = dynunet()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    report = load_encoder_by_shape(theirs, mine().state_dict())
    touched = set(report.matched.values())
    assert report.untouched
    assert not touched & set(report.untouched)
    for name, tensor in theirs.state_dict().items():
        if name in report.untouched:
            assert torch.equal(tensor, before[name]), name
            assert not name.startswith(("input_block", "downsamples", "bottleneck"))
    assert f"placed {len(touched)} of {len(touched)} tensors" in str(report)


def test_other_layers_are_refused_where_they_differ_and_change_nothing() -> None:
    theirs = dynunet(in_channels=1)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with pytest.raises(DataError, match=r"placed 15 of 18 .*levels\.0\.0\.0 \(weight \(4, 2, 3, 3, 3\)"):
        load_encoder_by_shape(theirs, mine().state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
    report = load_encoder_by_shape(theirs, mine().state_dict(), partial=True)
    assert len(report.missing) == 3
    assert report.matched["levels.0.1.0.weight"] == "input_block.conv2.conv.weight"


def test_a_norm_of_another_kind_is_another_layer() -> None:
    with pytest.raises(DataError, match=r"norm\.running_mean"):
        load_encoder_by_shape(dynunet(norm_name="batch"), mine().state_dict())
    with pytest.raises(DataError, match="another network"):
        load_encoder_by_shape(nn.Linear(3, 4), mine().state_dict(), partial=True)


def test_two_places_are_refused_until_one_is_named() -> None:
    pair = nn.ModuleDict({"student": mine(), "teacher": mine()})
    with pytest.raises(UsageError, match=r"2 places, beginning at student\.levels\.0.*, teacher\.levels\.0"):
        load_encoder_by_shape(pair, mine().state_dict())
    assert load_encoder_by_shape(pair["teacher"], mine().state_dict()).untouched == ()


def test_equal_widths_do_not_confuse_encoder_and_decoder() -> None:
    """Where deep levels share a width, the decoder has kernels of the encoder's shape; the run is still one."""
    ours = mine(widths=(4, 8, 8, 8), strides=(2, 2, 2))
    theirs = dynunet(
        kernel_size=(3,) * 4, strides=(1, 2, 2, 2), upsample_kernel_size=(2,) * 3, filters=(4, 8, 8, 8)
    )
    report = load_encoder_by_shape(theirs, ours.state_dict())
    assert list(report.matched.values())[-1].startswith("bottleneck")
    image = torch.randn(1, 2, 16, 24, 32)
    with torch.no_grad():
        assert torch.allclose(dynunet_levels(theirs, image)[-1], ours(image)[-1], atol=1e-4)
