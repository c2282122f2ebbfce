"""Windows cover a volume without a trace, and what test-time averaging transforms comes back."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handful.inference.sliding import gaussian_importance, sliding_window, window_size, window_starts
from handful.inference.tta import IDENTITY, averaged, entropy, mirrored, moved, transforms_for


class Blur(nn.Module):
    """A network that looks around: its output near the edge of a window differs from its output elsewhere."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(dims)
        kind: Callable[..., nn.Module] = nn.Conv3d if dims == 3 else nn.Conv2d
        self.conv = kind(2, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).softmax(1)
        return result


def pointwise(dims: int) -> Callable[[Tensor], Tensor]:
    """A network that looks at one voxel at a time."""
    weight = torch.linspace(-1, 1, 6).reshape(3, 2)

    def forward(x: Tensor) -> Tensor:
        assert x.ndim == dims + 2
        return torch.einsum("kc,bc...->bk...", weight, x).softmax(1)

    return forward


def naive(
    network: Callable[[Tensor], Tensor], image: Tensor, patch: tuple[int, ...], overlap: float
) -> Tensor:
    """Every window into one accumulator as large as the volume."""
    total, weight = torch.zeros(3, *image.shape[1:]), torch.zeros(image.shape[1:])
    importance = gaussian_importance(patch)
    starts = [window_starts(n, p, overlap) for n, p in zip(image.shape[1:], patch)]
    for d in starts[0]:
        for h in starts[1]:
            for w in starts[2]:
                box = tuple(slice(s, s + p) for s, p in zip((d, h, w), patch))
                with torch.no_grad():
                    total[(slice(None), *box)] += network(image[(slice(None), *box)][None])[0] * importance
                weight[box] += importance
    return total / weight


SIZES = [(21, 17, 13), (8, 6, 10), (5, 30, 7), (9, 3, 11), (1, 18, 4)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [(8, 6, 10), (6, 10)])
@pytest.mark.parametrize("multiple", [None, 2])
def test_pointwise_network_gives_what_it_gives_directly(
    size: tuple[int, ...], patch: tuple[int, ...], multiple: int | None
) -> None:
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    result = sliding_window(
        pointwise(len(patch)),
        image,
        patch=patch,
        batch=3,
        multiple=None if multiple is None else [multiple] * len(patch),
    )
    np.testing.assert_allclose(result, pointwise(3)(image[None])[0], atol=1e-6)


def test_constant_network_gives_a_constant() -> None:
    result = sliding_window(
        lambda x: torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(len(x), 2, *x.shape[2:]),
        torch.zeros(1, 11, 23, 9), patch=(4, 8, 6), overlap=0.7, batch=5,
    )  # fmt: skip
    np.testing.assert_allclose(result[1], 0.8, rtol=1e-6)
    np.testing.assert_allclose(result.sum(0), 1, rtol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_slabs_equal_one_large_accumulator(overlap: float, limit: int, tmp_path: Any) -> None:
    image = torch.randn(2, 29, 14, 17)
    network = Blur(3)
    result = sliding_window(
        network, image, patch=(8, 6, 10), overlap=overlap, batch=4, memory_limit=limit, scratch=tmp_path
    )
    assert isinstance(result, np.memmap) == (limit == 0)
    np.testing.assert_allclose(result, naive(network, image, (8, 6, 10), overlap), atol=1e-5)
    assert not list(tmp_path.iterdir())  # nothing stays behind


def test_agrees_with_monai() -> None:
    from monai.inferers.utils import sliding_window_inference

    image, network = torch.randn(2, 20, 12, 25), Blur(3)  # sizes at which both place the windows alike
    with torch.no_grad():
        expected = sliding_window_inference(image[None], (8, 6, 10), 2, network, overlap=0.5, mode="gaussian")
    assert isinstance(expected, Tensor)
    np.testing.assert_allclose(sliding_window(network, image, patch=(8, 6, 10)), expected[0], atol=1e-5)


def test_slices_are_predicted_one_by_one() -> None:
    image, network = torch.randn(2, 7, 13, 11), Blur(2)
    stacked = sliding_window(network, image, patch=(6, 8), batch=3)
    for d in range(7):
        alone = sliding_window(network, image[:, d : d + 1], patch=(6, 8))
        np.testing.assert_allclose(stacked[:, d : d + 1], alone, atol=1e-6)


def test_a_volume_little_larger_than_a_patch_passes_whole() -> None:
    calls: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        result: Tensor = blur(x)
        return result

    blur, image = Blur(3), torch.randn(2, 11, 17, 13)
    result = sliding_window(network, image, patch=(8, 16, 16), multiple=(4, 4, 4))
    assert calls == [(1, 2, 12, 20, 16)]
    assert result.shape == (3, 11, 17, 13)
    assert window_size((11, 19, 60), (8, 16, 16), (4, 8, 4)) == (8, 16, 16)


def test_small_volumes_are_filled_up_as_in_training() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    image = torch.arange(1.0, 4.0).reshape(1, 3, 1, 1).expand(1, 3, 2, 5).contiguous()
    result = sliding_window(network, image, patch=(8, 4, 5))
    assert seen[0][0, 0, :, 0, 0].tolist() == [1, 1, 1, 2, 3, 3, 3, 3]
    np.testing.assert_allclose(result, image, rtol=1e-6)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remember how many elements the largest tensor that any operation made has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path: Any) -> None:
    peaks = []
    for depth in (20, 40):
        image = torch.zeros(1, 1, 14, 12).expand(1, depth, 14, 12)  # no memory of its own: only ours is seen
        with LargestTensor() as largest:
            result = sliding_window(
                lambda x: x.expand(len(x), 5, *x.shape[2:]),
                image,
                patch=(8, 6, 10),
                memory_limit=0,
                scratch=tmp_path,
            )
        assert isinstance(result, np.memmap)
        peaks.append(largest.elements)
    assert peaks[0] == peaks[1] == 5 * 8 * 14 * 12


def test_windows_reach_both_ends_and_leave_no_gap() -> None:
    checked = 0
    for size in range(1, 60):
        for window in (1, 2, 7, 16):
            for overlap in (0.0, 0.25, 0.5, 0.9):
                starts = window_starts(size, window, overlap)
                assert starts[0] == 0
                assert starts[-1] == max(size - window, 0)
                assert all(0 < b - a <= max(window * (1 - overlap), 1) + 0.5 for a, b in pairwise(starts))
                checked += 1
    assert checked == 59 * 16


@pytest.mark.parametrize("flags", [(True, False, True), (False, False, False), (True, True), (False, False)])
def test_what_is_transformed_comes_back(flags: tuple[bool, ...]) -> None:
    size = (12, 17, 21)[-len(flags) :]
    axes = [torch.linspace(-1, 1, n) for n in size]
    smooth = torch.stack([torch.cos(1.5 * g) for g in torch.meshgrid(*axes, indexing="ij")])[None]
    transforms = transforms_for(flags)
    assert len(transforms) == (2 ** sum(flags) if any(flags) else 5)
    assert len({transform.name for transform in transforms}) == len(transforms)
    inner = (slice(None), slice(None), *(slice(n // 4, -(n // 4)) for n in size))
    for transform in transforms:
        changed = transform.apply(smooth)
        back = transform.invert(changed)
        assert changed.shape == back.shape == smooth.shape
        if any(flags):
            assert torch.equal(back, smooth)
        else:
            torch.testing.assert_close(back[inner], smooth[inner], atol=0.02, rtol=0)
            if transform is not IDENTITY:
                assert (changed[inner] - smooth[inner]).abs().max() > 0.03


def test_moves_go_where_they_say() -> None:
    image = torch.zeros(1, 1, 9, 20, 30)
    image[0, 0, 4, 10, 21] = 1
    shifted = moved(angle_degrees=0, scale=1, shift=(0, 0, 0.1)).apply(image)  # 3 of 30 voxels
    assert shifted[0, 0, 4, 10, 18] == pytest.approx(1, abs=1e-4)
    turned = moved(angle_degrees=90, scale=1, shift=(0, 0, 0)).apply(image)
    centre = turned[0, 0].nonzero().float().mean(0)
    distance = math.dist((9.5, 14.5), centre[1:].tolist())  # rotations keep the distance from the centre
    assert distance == pytest.approx(math.dist((9.5, 14.5), (10, 21)), abs=0.3)
    assert mirrored([1]).apply(image)[0, 0, 4, 9, 21] == 1


def test_averaging_a_network_without_a_sense_of_place_changes_nothing() -> None:
    logits = lambda x: torch.cat([x, -x, 0.5 * x], 1)  # noqa: E731
    x = torch.randn(2, 1, 6, 8, 10)
    plain = averaged(logits, (IDENTITY,))(x)
    torch.testing.assert_close(averaged(logits, transforms_for((True, True, True)))(x), plain)
    torch.testing.assert_close(plain.sum(1), torch.ones(2, 6, 8, 10))


def test_entropy_is_between_certainty_and_none() -> None:
    p = np.zeros((4, 2, 3, 5), np.float32)
    p[0] = 1
    assert entropy(p).max() == 0
    assert entropy(np.full((4, 2, 3, 5), 0.25)) == pytest.approx(1.0)
    p[0], p[1] = 0.5, 0.5
    assert entropy(p) == pytest.approx(0.5)
