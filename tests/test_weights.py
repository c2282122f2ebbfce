"""Laws of the files of weights, and of loading that counts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from handful.errors import DataError, UsageError
from handful.networks.build import build_network, unet_architecture
from handful.networks.unet import UNet
from handful.networks.weights import load_into, load_weights, read_metadata, save_weights

ARCHITECTURE = unet_architecture(dims=2, in_channels=1, classes=3, widths=(4, 6, 8), norm="batch")


def network(**changes: object) -> UNet:
    net = build_network({**ARCHITECTURE, **changes})
    assert isinstance(net, UNet)
    return net


def test_weights_and_their_metadata_are_enough_to_build_the_network_again(tmp_path: Path) -> None:
    net = network().to(memory_format=torch.channels_last)
    net(torch.randn(2, 1, 8, 12))  # moves batch norm's buffers
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"segmenter": net}, {"architecture": ARCHITECTURE, "names": ["background", "é"]})
    metadata = read_metadata(path)
    assert metadata["names"] == ["background", "é"]
    parts, again = load_weights(path)
    assert again == metadata
    other = build_network(metadata["architecture"])
    report = load_into(other, parts["segmenter"])
    assert len(report.matched) == len(net.state_dict()) > 0
    assert (report.missing, report.unexpected, report.shape_mismatch) == ((), (), ())
    x = torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(other.eval()(x), net.eval()(x))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_parts_that_overlap_are_written_once_and_read_twice(tmp_path: Path) -> None:
    net = network()
    one, both = tmp_path / "one.safetensors", tmp_path / "both.safetensors"
    save_weights(one, {"segmenter": net}, {})
    save_weights(both, {"segmenter": net, "encoder": net.encoder}, {})
    assert both.stat().st_size - one.stat().st_size < 10_000 < one.stat().st_size
    parts, _ = load_weights(both)
    for name, tensor in net.encoder.state_dict().items():
        assert torch.equal(parts["encoder"][name], tensor)
        assert torch.equal(parts["segmenter"][f"encoder.{name}"], tensor)
    assert len(load_into(net.encoder, parts["encoder"]).matched) == len(net.encoder.state_dict())


def test_a_part_without_tensors_is_kept(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"nothing": nn.Identity(), "line": nn.Linear(2, 3)}, {})
    parts, _ = load_weights(tmp_path / "a.safetensors")
    assert parts["nothing"] == {}
    assert set(parts["line"]) == {"weight", "bias"}


def test_a_part_name_with_a_dot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without dots, found 'a\.b'"):
        save_weights(tmp_path / "a.safetensors", {"a.b": nn.Linear(2, 2)}, {})
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    net, other = network(), network(classes=5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        DataError, match=r"loaded \d+ of \d+ tensors; 2 of another shape \(heads.0.weight, heads.0.bias\)"
    ):
        load_into(net, other.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    report = load_into(net, other.state_dict(), partial=True)
    assert report.shape_mismatch == ("heads.0.weight", "heads.0.bias")
    assert len(report.matched) == len(before) - 2
    assert torch.equal(net.state_dict()["heads.0.bias"], before["heads.0.bias"])
    assert all(torch.equal(net.state_dict()[name], other.state_dict()[name]) for name in report.matched)


def test_a_prefix_that_matches_nothing_is_refused_even_partially() -> None:
    net = network()
    prefixed = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    with pytest.raises(DataError, match="loaded 0 of"):
        load_into(net, prefixed, partial=True)


def test_missing_and_unexpected_tensors_are_named() -> None:
    net = network()
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("heads")}
    state["projection.weight"] = torch.zeros(2)
    report = load_into(net, state, partial=True)
    assert report.missing == ("heads.0.weight", "heads.0.bias")
    assert report.unexpected == ("projection.weight",)
    assert "1 not in the network (projection.weight)" in str(report)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(DataError, match=r"weights\.safetensors does not exist"):
        load_weights(path)
    save_weights(path, {"a": nn.Linear(20, 30)}, {})
    whole = path.read_bytes()
    damages = [
        whole[:5],
        whole[: len(whole) // 2],
        b"",
        b"\x80\x04pickle" * 20,
        whole[:40] + b"\xff" + whole[41:],
    ]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
            load_weights(path)
        with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
            read_metadata(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not weights saved by this tool"):
        read_metadata(path)
