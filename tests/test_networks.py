"""Laws of the networks: published sizes, parts, shapes, and agreement between 2D and 3D."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.errors import UsageError
from handful.networks.blocks import InstanceNorm
from handful.networks.build import build_network, unet_architecture
from handful.networks.heads import LeanPyramidHead, PixelHead, PyramidHead, VectorHead
from handful.networks.parts import head_of
from handful.networks.presets import PRESETS, preset
from handful.networks.unet import UNet
from handful.networks.vnet import VNet

GOLDEN = Path(__file__).parent / "golden"


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# ---- published sizes

PUBLISHED = [
    ("pcl-32", 8, 7_763_584),
    ("pcl-48", 4, 17_462_016),
    ("pcl-48", 3, 17_461_968),
    ("sscl", 3, 31_030_788),
    ("sscl", 8, 31_031_113),
    ("mona", 4, 1_813_764),
    ("mona-vnet", 2, 9_448_866),
    ("genesis", 1, 19_073_665),
]


@pytest.mark.parametrize(("name", "classes", "count"), PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name: str, classes: int, count: int) -> None:
    assert parameters(preset(name, in_channels=1, classes=classes)) == count


def test_every_preset_is_checked_and_has_a_source() -> None:
    assert {name for name, _, _ in PUBLISHED} == set(PRESETS)
    assert all("https://" in entry.source for entry in PRESETS.values())


def test_encoders_and_heads_have_the_published_number_of_parameters() -> None:
    counts = {}
    for width in (32, 48):
        net = preset(f"pcl-{width}", in_channels=1, classes=4)
        head = VectorHead(net.encoder.widths[-1], hidden=16 * width, out=512)
        counts[f"pcl-{width}"] = (parameters(net.encoder), parameters(net.encoder, head))
    sscl = preset("sscl", in_channels=1, classes=3)
    pixel_head = PixelHead(dims=2, in_channels=64, hidden=256, out=128)
    genesis, mona = preset("genesis", in_channels=1, classes=1), preset("mona", in_channels=1, classes=4)
    assert counts == {"pcl-32": (4_713_568, 5_238_880), "pcl-48": (10_602_384, 11_586_704)}
    assert parameters(sscl.encoder) == 20_939_712
    assert parameters(sscl) - parameters(sscl.heads) + parameters(pixel_head) == 31_080_129
    assert parameters(genesis.encoder) == 7_027_776
    assert parameters(PyramidHead(dims=2, widths=mona.decoder.widths)) == 890_112
    assert parameters(PixelHead(dims=2, in_channels=496, hidden=496, out=496, bias=False)) == 492_032
    assert parameters(PyramidHead(dims=3, widths=(16, 16, 32, 64, 128), out=16)) == 165_120


def test_transfers_count_the_published_number_of_state_entries() -> None:
    pcl, sscl = preset("pcl-32", in_channels=1, classes=8), preset("sscl", in_channels=1, classes=3)
    assert len(pcl.encoder.state_dict()) == 60
    assert len(sscl.encoder.state_dict()) == 22
    assert len(sscl.state_dict()) == 48


# ---- laws of every network

NETWORKS: dict[str, dict[str, Any]] = {
    "2d": {"name": "unet", "dims": 2, "widths": [4, 6, 8]},
    "3d": {"name": "unet", "dims": 3, "widths": [4, 6, 8]},
    "deep": {"name": "unet", "dims": 3, "widths": [4, 6, 8, 8, 8], "deep_supervision": True},
    "residual": {"name": "unet", "dims": 3, "widths": [4, 6, 8], "kind": "residual", "blocks": [1, 2, 1]},
    "residual 2d": {"name": "unet", "dims": 2, "widths": [4, 4, 8], "kind": "residual", "norm": "batch"},
    "anisotropic": {
        "name": "unet",
        "dims": 3,
        "widths": [4, 6, 8],
        "strides": [[1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], 3, 3],
        "deep_supervision": True,
    },
    "no norm": {"name": "unet", "dims": 2, "widths": [4, 6], "norm": "none"},
    "pool": {"name": "unet", "dims": 3, "widths": [4, 6, 8], "style": {"down": "pool", "up": "linear"}},
    "pcl style": {
        "name": "unet",
        "dims": 3,
        "widths": [4, 6, 8],
        "norm": "batch",
        "style": PRESETS["pcl-32"].sizes["style"],
    },
    "sscl style": {"name": "unet", "dims": 3, "widths": [4, 6, 8], "style": PRESETS["sscl"].sizes["style"]},
    "genesis style": {
        "name": "unet",
        "dims": 2,
        "widths": [[4, 6], [6, 8], [8, 10]],
        "norm": "batch",
        "style": PRESETS["genesis"].sizes["style"],
    },
    "vnet": {"name": "vnet", "dims": 3, "widths": [4, 6, 8], "blocks": [1, 2, 3], "dropout": 0.0},
    "vnet 2d": {"name": "vnet", "dims": 2, "widths": [4, 6, 8], "blocks": [1, 2, 3], "dropout": 0.0},
}


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> UNet | VNet:
    torch.manual_seed(0)
    built = build_network({"in_channels": 2, "classes": 3, **NETWORKS[request.param]})
    assert isinstance(built, UNet | VNet)
    return built


def images(net: UNet | VNet, *, dtype: torch.dtype = torch.float32) -> Tensor:
    size = [stride * extent for stride, extent in zip(net.encoder.total_stride, (2, 3, 1))]
    return torch.randn(2, 2, *size, dtype=dtype)


def test_encoder_decoder_and_heads_hold_every_parameter_once(net: UNet | VNet) -> None:
    idle = [module for name, module in net.named_children() if name == "idle_head"]
    assert parameters(net) == parameters(net.encoder, net.decoder, net.heads, *idle)
    assert all(not parameter.requires_grad for module in idle for parameter in module.parameters())


def test_feature_maps_are_finest_first_and_decoder_maps_follow_them(net: UNet | VNet) -> None:
    x = images(net)
    features = net.encoder(x)
    maps = net.decoder(features)
    assert [f.shape[1] for f in features] == list(net.encoder.widths)
    assert [m.shape[1] for m in maps] == list(net.decoder.widths)
    assert [m.shape[2:] for m in maps] == [f.shape[2:] for f in features]
    assert features[0].shape[2:] == x.shape[2:]
    assert all(a.numel() / a.shape[1] >= b.numel() / b.shape[1] for a, b in pairwise(features))
    assert net(x).shape == (2, 3, *x.shape[2:])
    assert torch.equal(net.eval()(x), net.heads[0](net.decoder(net.encoder(x))[0]))


def test_gradients_reach_every_trainable_parameter(net: UNet | VNet) -> None:
    x = images(net)
    outputs = net.deep(x) if isinstance(net, UNet) else [net(x)]
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert len(trainable) > 10
    for name, parameter in trainable.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_memory_format_changes_nothing_and_is_kept(net: UNet | VNet) -> None:
    x = images(net)
    plain = net(x)
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    for module in (net.encoder, net.decoder):
        module.to(memory_format=form)
    features = net.encoder(x.to(memory_format=form))
    maps = net.decoder(features)
    # maps of one pixel are contiguous in every format
    assert all(t.is_contiguous(memory_format=form) for t in (*features, *maps))
    torch.testing.assert_close(
        net.to(memory_format=form)(x.to(memory_format=form)), plain, rtol=1e-4, atol=1e-4
    )


def test_the_state_makes_a_round_trip(net: UNet | VNet) -> None:
    x = images(net)
    net(x)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net.eval()(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert not torch.equal(net(x), expected)
    net.load_state_dict(state)
    assert torch.equal(net(x), expected)


def test_sizes_that_do_not_divide_are_refused_with_advice(net: UNet | VNet) -> None:
    x = images(net)
    with pytest.raises(ValueError, match=r"do not divide by the network's total strides .* for example to"):
        net(x[..., 1:])
    with pytest.raises(ValueError, match="axes in S"):
        net(x[..., 0])


# ---- laws of the U-Net


def test_deep_supervision_predicts_at_the_three_finest_levels() -> None:
    net = build_network({"in_channels": 2, "classes": 3, **NETWORKS["deep"]})
    x = images(net)
    deep = net.deep(x)
    assert [tuple(z.shape) for z in deep] == [(2, 3, 32, 48, 16), (2, 3, 16, 24, 8), (2, 3, 8, 12, 4)]
    assert torch.equal(deep[0], net(x))
    single = build_network({"in_channels": 2, "classes": 3, **NETWORKS["3d"]})
    assert len(single.deep(images(single))) == 1


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    "style", [{}, PRESETS["pcl-32"].sizes["style"], PRESETS["sscl"].sizes["style"], {"up": "linear"}]
)
def test_a_flat_3d_network_is_the_2d_network(kind: str, style: dict) -> None:
    common = {
        "in_channels": 2,
        "classes": 3,
        "widths": (4, 6, 8),
        "norm": "instance",
        "kind": kind,
        "style": style,
    }
    flat = UNet(dims=2, **common).double()
    deep = UNet(dims=3, kernels=[(1, 3, 3)] * 3, strides=[(1, 2, 2)] * 2, **common).double()
    weights = {name: tensor.view(deep.state_dict()[name].shape) for name, tensor in flat.state_dict().items()}
    deep.load_state_dict(weights)
    x = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(deep(x[:, :, None]).squeeze(2), flat(x))


def test_the_pcl_network_is_written_out_in_plain_words() -> None:
    """A slow obvious version of the published forward pass, weights taken from the preset."""
    sizes = {**PRESETS["pcl-32"].sizes, "widths": (2, 3, 4)}
    net = UNet(in_channels=1, classes=3, **sizes).double()
    net(torch.randn(3, 1, 8, 12, dtype=torch.float64))  # moves the running statistics
    net.eval()
    state = {
        name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    values = iter(state.values())

    def conv(x: Tensor) -> Tensor:
        return F.conv2d(x, next(values), next(values), padding=1)

    def block(x: Tensor) -> Tensor:
        x = conv(x)
        weight, bias, mean, var = (next(values) for _ in range(4))
        return F.leaky_relu(F.batch_norm(x, mean, var, weight, bias), 0.01)

    x = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    one = block(block(x))
    two = block(block(F.max_pool2d(one, 2)))
    centre = F.relu(conv(F.relu(conv(F.max_pool2d(two, 2)))))
    ups = [F.conv_transpose2d(centre, next(values), next(values), stride=2)]
    remaining = list(values)  # the state lists both up-samplings before the decoder's blocks
    values = iter(remaining[2:])
    two = block(block(torch.cat([ups[0], two], 1)))
    up = F.conv_transpose2d(two, remaining[0], remaining[1], stride=2)
    one = block(block(torch.cat([up, one], 1)))
    torch.testing.assert_close(net(x), F.conv2d(one, next(values)))


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    net = preset("pcl-32", in_channels=1, classes=8)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convs) == 23
    for conv in convs:
        assert conv.bias is None or (conv.bias == 0).all()
        fan_in = conv.weight[0].numel()
        if conv.weight.numel() > 10_000:
            assert float(conv.weight.detach().std()) == pytest.approx(
                (2 / (1.0001 * fan_in)) ** 0.5, rel=0.05
            )


def test_sizes_that_do_not_fit_each_other_are_refused() -> None:
    sizes: dict[str, Any] = {"dims": 3, "in_channels": 1, "classes": 2, "widths": (4, 6, 8)}
    for wrong, message in [
        ({"widths": (4,)}, "at least two levels"),
        ({"dims": 4}, "dims 2 or 3"),
        ({"kernels": (3, 3)}, "kernels must have 3 entries"),
        ({"kernels": 2}, "odd"),
        ({"strides": ((2, 2), 2)}, "3 of them for a 3D"),
        ({"norm": "layer"}, "batch, instance or none"),
        ({"style": {"ups": "linear"}}, "did you mean 'up'"),
        ({"style": {"dropout": (0.5,)}}, "dropout must have 3 entries"),
    ]:
        with pytest.raises(UsageError, match=message):
            UNet(**{**sizes, **wrong})


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_is_torchs_in_value_and_gradient(affine: bool, form: torch.memory_format) -> None:
    norm = InstanceNorm(3, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64).to(memory_format=form).requires_grad_()
    torch.testing.assert_close(norm(x), F.instance_norm(x, weight=norm.weight, bias=norm.bias))
    assert norm(x).is_contiguous(memory_format=form)
    assert torch.autograd.gradcheck(lambda y: norm(y.contiguous(memory_format=form)), x)


def test_the_network_compiles_and_computes_in_bfloat16() -> None:
    net = UNet(dims=3, in_channels=1, classes=3, widths=(4, 6)).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 1, 4, 6, 8).to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), net(x), rtol=0.1, atol=0.1)


# ---- heads


def test_the_vector_head_averages_over_space() -> None:
    head = VectorHead(6, hidden=5, out=4)
    feature = torch.randn(2, 6, 3, 4, 2)
    assert head(feature).shape == (2, 4)
    torch.testing.assert_close(head(feature), head(feature.flip(2).transpose(3, 4)))


def test_the_pyramid_head_matches_published_numbers() -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "mona_fpn2d.npz").items()}
    maps = [golden[f"x{level}"] for level in reversed(range(5))]
    head = PyramidHead(dims=2, widths=[m.shape[1] for m in maps])
    head.load_state_dict({f"mixers.{level}.weight": golden[f"w_fea{level}"] for level in range(5)})
    features = head(maps)
    torch.testing.assert_close(features, golden["features"], rtol=1e-5, atol=1e-5)
    project = PixelHead(dims=2, in_channels=18, hidden=18, out=18, bias=False)
    project.load_state_dict({"layers.0.weight": golden["w_q0"], "layers.1.weight": golden["w_q1"]})
    torch.testing.assert_close(project(features), golden["representation"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_lean_pyramid_head_has_the_functions_of_the_published_one(dims: int) -> None:
    fine, middle, deep = maps = [
        torch.randn(2, width, *[8 // 2**i] * dims) for i, width in enumerate((3, 4, 5))
    ]
    published = PyramidHead(dims=dims, widths=(3, 4, 5), out=6)
    lean = LeanPyramidHead(dims=dims, widths=(3, 4, 5), out=6)
    deepest, between, last = (mix.weight.detach().flatten(1) for mix in published.mixers)
    deepest, between = deepest + torch.eye(5), between + torch.eye(9)  # each added to its input
    products = last[:, 9:], last[:, :9] @ between[:, 5:], last[:, :9] @ between[:, :5] @ deepest
    for mix, product in zip(lean.mixers, products):
        mix.weight.data.copy_(product.reshape(mix.weight.shape))
    torch.testing.assert_close(lean(maps), published(maps), rtol=1e-4, atol=1e-5)
    assert lean([fine, middle, deep]).shape == (2, 6, *[8] * dims)


# ---- architectures


def test_an_architecture_survives_json() -> None:
    architecture = unet_architecture(
        dims=3, in_channels=1, classes=3, widths=(4, 6), strides=((1, 2, 2),), style={"dropout": (0.1, 0.2)}
    )
    assert json.loads(json.dumps(architecture)) == architecture
    torch.manual_seed(0)
    first = build_network(architecture)
    torch.manual_seed(0)
    second = UNet(
        dims=3, in_channels=1, classes=3, widths=(4, 6), strides=((1, 2, 2),), style={"dropout": (0.1, 0.2)}
    )
    assert str(first) == str(second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_presets_build_in_other_dimensions() -> None:
    net = build_network({"name": "preset:mona", "in_channels": 1, "classes": 2, "dims": 3})
    assert net(torch.zeros(1, 1, 16, 32, 16)).shape == (1, 2, 16, 32, 16)


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_head_is_what_turns_the_finest_decoder_map_into_logits(name: str) -> None:
    net = preset(name, in_channels=1, classes=5, dims=2).eval()
    image = torch.randn(1, 1, 16, 32)
    head, classes = head_of(net)
    assert classes == 5
    assert torch.equal(head(net.decoder(net.encoder(image))[0]), net(image))


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has not got it"):
        head_of(nn.Linear(2, 3))


def test_any_module_is_found_by_its_dotted_name() -> None:
    net = build_network({"name": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 3})
    assert isinstance(net, nn.Conv2d)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, "needs a 'name'"),
        ({"name": "unett"}, "did you mean 'unet'"),
        ({"name": "preset:pcl", "in_channels": 1, "classes": 2}, "Known: .*pcl-32"),
        ({"name": "preset:pcl-32", "in_channels": 1}, "classes"),
        (
            {"name": "unet", "dims": 2, "in_channels": 1, "classes": 2, "widths": [2, 4], "depth": 3},
            "depth.*It takes: dims",
        ),
        ({"name": "no_such_package.Net"}, "cannot be imported"),
        ({"name": "torch.nn.Conv2dd"}, "did you mean 'Conv2d'"),
        ({"name": "torch.zeros", "size": 3}, "no torch.nn.Module 'zeros'"),
    ],
)
def test_unknown_names_and_arguments_are_refused_with_what_exists(architecture: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(architecture)
