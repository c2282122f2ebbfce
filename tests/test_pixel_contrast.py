"""Laws of the pixel contrast: it is the sum over all pairs whatever the tiles; the numbers of the published code."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.losses import info_nce, pixel_contrast, streamed, streamed_rows
from handful.losses.embeddings import unit

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path for path in GOLDEN.glob("sscl_*.npz") if "kind" in np.load(path).files)
OTHER_SSCL = {"sscl_finetune_loss", "sscl_ntxent_t010"}


@pytest.fixture(params=["large tiles", "small tiles", "rows"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to stream, in pieces so small that small maps have every kind of them."""
    monkeypatch.setattr(streamed, "_few", lambda *_: request.param == "rows")
    monkeypatch.setattr(streamed, "TILE", 37 if request.param == "small tiles" else 768)
    monkeypatch.setattr(streamed_rows, "BLOCK", 7)
    monkeypatch.setattr(streamed_rows, "KEYS", 37)
    return str(request.param)


def random_case(
    *size: int, images: int = 2, views: int = 2, width: int = 5, classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, views, width, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (images, views, *size), generator=generator)
    return z, labels


def matrix_form(
    z: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    background: int = 0,
    background_anchors: bool = False,
    ignore: int = -1,
) -> Tensor:
    """The loss with the N x N matrix, through ``info_nce``."""
    flat = z.movedim(2, -1).flatten(0, -2)
    if labels is None:
        place = torch.arange(len(z) * z[0, 0, 0].numel()).view(len(z), 1, -1)
        group = place.expand(-1, z.shape[1], -1).flatten()
        return info_nce(flat, group[:, None] == group, temperature=temperature)
    group = labels.flatten()
    flat, group = flat[group != ignore], group[group != ignore]
    anchors = torch.ones_like(group).bool() if background_anchors else group != background
    return info_nce(flat, group[:, None] == group, temperature=temperature, anchors=anchors)


def value_and_gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> tuple[float, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z)
    value.backward()
    assert z.grad is not None
    return value.item(), z.grad


def published(path: Path) -> tuple[dict[str, Any], Tensor | None, dict[str, Any]]:
    case = dict(np.load(path))
    settings: dict[str, Any] = {"temperature": float(case["temperature"])}
    number = re.search(r"\d+", str(case["param"]))
    for word, name in (("Local", "stride"), ("Block", "block")):
        if word in str(case["kind"]):
            assert number is not None
            settings[name] = int(number.group())
    return case, torch.tensor(case["labels"]) if case["labels"].size else None, settings


def test_the_published_cases_are_all_here() -> None:
    assert len(FILES) == 25
    assert {path.stem for path in GOLDEN.glob("sscl_*.npz")} - {path.stem for path in FILES} == OTHER_SSCL
    kinds = {str(np.load(path)["kind"]).split()[0] for path in FILES}
    assert kinds == {"SupConLoss", "LocalConLoss", "BlockConLoss", "SupConSegLoss"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_numbers(path: Path, way: str) -> None:
    case, labels, settings = published(path)
    features = torch.tensor(case["features"])
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, **settings), features)
    if not np.isfinite(case["loss_official"]):
        # a class with one pixel is 0/0 there; here it is left out of the mean
        assert path.stem in ("sscl_singleton_nan", "sscl_single_background_nan")
        expected = matrix_form(features, labels, temperature=settings["temperature"]).item()
        assert value == pytest.approx(expected, rel=1e-12)
        assert gradient.isfinite().all()
        return
    assert value == pytest.approx(float(case["loss_official"]), rel=1e-9, abs=1e-12)
    # the published code takes unit embeddings as they are; scaling them inside leaves the tangential part
    outer = torch.tensor(case["grad_features"])
    tangential = outer - (outer * features).sum(2, keepdim=True) * features
    torch.testing.assert_close(gradient, tangential, rtol=1e-9, atol=1e-13)
    single = pixel_contrast(features.float(), labels, **settings)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(float(case["loss_official"]), rel=1e-5)


def test_the_printed_equation_is_not_what_is_computed() -> None:
    case, labels, settings = published(GOLDEN / "sscl_full_t010_detail.npz")
    assert labels is not None
    z, temperature = torch.tensor(case["features"]), settings["temperature"]
    assert pixel_contrast(z, labels, **settings).item() != pytest.approx(float(case["loss_printed_equation"]))
    flat = z.transpose(0, 1).movedim(2, -1).flatten(0, -2)
    group = labels.transpose(0, 1).flatten()
    positives = group[:, None] == group
    for i in range(0, 256, 17):
        cost = info_nce(flat, positives, temperature=temperature, anchors=torch.arange(256) == i).item()
        assert cost == pytest.approx(case["per_pixel_loss"][i], rel=1e-9)
    assert (positives.sum(1) - 1).tolist() == case["positives_per_pixel"].tolist()


def test_published_blocks_one_by_one() -> None:
    case, labels, settings = published(GOLDEN / "sscl_block04_t010_sparse.npz")
    assert labels is not None
    z, skipped = torch.tensor(case["features"]), 0
    for row, column in np.ndindex(4, 4):
        window = (..., slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        value = pixel_contrast(z[window], labels[window], temperature=settings["temperature"]).item()
        expected = case["per_block_loss"][row, column]
        if np.isnan(expected):
            skipped += 1
            assert value == 0
        else:
            assert value == pytest.approx(expected, rel=1e-9)
    assert skipped == 12


@pytest.mark.parametrize("temperature", [0.002, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("size", [(7, 5), (3, 4, 2), (11,)])
@pytest.mark.parametrize("form", ["labels", "background_anchors", "ignore", "none", "three_views"])
def test_the_streamed_form_is_the_matrix_form(
    form: str, size: tuple[int, ...], temperature: float, way: str
) -> None:
    z, labels = random_case(*size, views=3 if form == "three_views" else 2)
    settings: dict[str, Any] = {"temperature": temperature}
    known: Tensor | None = labels
    if form == "background_anchors":
        settings |= {"background_anchors": True, "background": 2}
    elif form == "ignore":
        settings |= {"ignore": 3, "background": 1}
    elif form in ("none", "three_views"):
        known = None
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, known, **settings), z)
    expected, slope = value_and_gradient(lambda z: matrix_form(z, known, **settings), z)
    assert value == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_float32_is_close_to_float64(temperature: float, way: str) -> None:
    z, labels = random_case(13, 17, width=16)
    expected, slope = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=temperature), z)
    value, gradient = value_and_gradient(
        lambda z: pixel_contrast(z, labels, temperature=temperature), z.float()
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert (gradient - slope).norm() <= 1e-5 * slope.norm()


def test_bfloat16_products_are_close(way: str) -> None:
    z, labels = random_case(23, 17, width=32)
    expected, slope = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1), z)
    value, gradient = value_and_gradient(
        lambda z: pixel_contrast(z, labels, temperature=0.1, products="bfloat16"), z.float()
    )
    assert value == pytest.approx(expected, rel=1e-3)
    assert 0 < (gradient - slope).norm() <= 2e-2 * slope.norm()


@pytest.mark.parametrize("temperature", [0.015, 0.2])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("rows", [True, False])
def test_gradcheck(temperature: float, labelled: bool, rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_few", lambda *_: rows)
    monkeypatch.setattr(streamed, "TILE", 5)
    monkeypatch.setattr(streamed_rows, "BLOCK", 3)
    monkeypatch.setattr(streamed_rows, "KEYS", 5)
    z, labels = random_case(3, 2, width=3)
    assert torch.autograd.gradcheck(
        lambda z: pixel_contrast(z, labels if labelled else None, temperature=temperature), z.requires_grad_()
    )


def test_every_pair_lies_in_one_tile() -> None:
    checked = 0
    for n in range(1, 14):
        for anchors in range(1, n + 1):
            for parts in (1, 2, 3):
                seen = torch.zeros(n, n, dtype=torch.int64)
                for part in range(parts):
                    for rows, columns, diagonal, mutual in streamed.tiles(
                        n, anchors, size=4, share=(part, parts)
                    ):
                        seen[rows, columns] += 1
                        if mutual and not diagonal:
                            seen[columns, rows] += 1
                assert (seen[:anchors] == 1).all()
                assert not seen[anchors:].any()
                checked += 1
    assert checked == 273


def test_stride_and_block_are_the_exact_form_on_parts() -> None:
    for size in ((9, 7), (5, 6, 7)):
        z, labels = random_case(*size)
        for known in (labels, None):
            strided = pixel_contrast(z, known, temperature=0.1, stride=3).item()
            step = [slice(None, None, 3)] * len(size)
            part = None if known is None else known[(slice(None), slice(None), *step)]
            some = z[(slice(None), slice(None), slice(None), *step)]
            assert strided == pytest.approx(pixel_contrast(some, part, temperature=0.1).item(), rel=1e-12)
            whole = pixel_contrast(z, known, temperature=0.1).item()
            assert pixel_contrast(z, known, temperature=0.1, stride=1).item() == whole
            tiles = pixel_contrast(z, known, temperature=0.1, block=3).item()
            values = []
            for corner in np.ndindex(*(side // 3 for side in size)):
                window = [slice(3 * at, 3 * at + 3) for at in corner]
                part = None if known is None else known[(slice(None), slice(None), *window)]
                some = z[(slice(None), slice(None), slice(None), *window)]
                values.append(pixel_contrast(some, part, temperature=0.1).item())
            assert len(values) in (6, 4)
            assert tiles == pytest.approx(np.mean(values), rel=1e-12)


def test_block_of_the_whole_side_is_exact() -> None:
    z, labels = random_case(6, 6)
    exact = pixel_contrast(z, labels, temperature=0.1).item()
    assert pixel_contrast(z, labels, temperature=0.1, block=6).item() == pytest.approx(exact, rel=1e-12)


def test_background_tiles_and_left_overs_do_not_count() -> None:
    z, labels = random_case(4, 6)
    labels[..., 3:] = 0
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1, block=3), z)
    first = pixel_contrast(z[..., :3, :3], labels[..., :3, :3], temperature=0.1).item()
    assert value == pytest.approx(first, rel=1e-12)
    assert gradient[..., :3, :3].any()
    assert not gradient[..., 3:, :].any()
    assert not gradient[..., 3:].any()


def test_invariances() -> None:
    z, labels = random_case(4, 5, classes=3)

    def loss(z: Tensor, labels: Tensor | None = labels) -> float:
        return pixel_contrast(z, labels, temperature=0.1).item()

    expected = pytest.approx(loss(z), rel=1e-12)
    names = torch.tensor([0, 7, 3])
    assert loss(z, names[labels]) == expected
    assert loss(z.flip(0), labels.flip(0)) == expected
    assert loss(z.flip(1), labels.flip(1)) == expected
    assert loss(z.flip(3), labels.flip(2)) == expected
    assert loss(z * 7) == expected
    assert loss(z, labels.to(torch.uint8)) == expected
    # background pixels are negatives: they count, and without them the loss falls
    moved = torch.where((labels == 0).unsqueeze(2), z.roll(1, 2), z)
    assert loss(moved) != expected
    assert loss(z, labels.masked_fill(labels == 0, -1)) < loss(z)
    # no base factor: twice the temperature is another loss, not a multiple
    hot = pixel_contrast(z, labels, temperature=0.2).item()
    assert hot / loss(z) != pytest.approx(0.5, rel=1e-2)


def test_ignored_pixels_take_no_part() -> None:
    z, labels = random_case(4, 5)
    labels[labels == 2] = -1
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1), z)
    changed = torch.where((labels == -1).unsqueeze(2), z.roll(1, 2), z)
    assert pixel_contrast(changed, labels, temperature=0.1).item() == value
    gone = (labels == -1).unsqueeze(2).expand_as(z)
    assert not gradient[gone].any()
    assert gradient[~gone].all()


def test_distinct_labels_equal_across_views_are_self_supervision() -> None:
    z, _ = random_case(4, 5)
    labels = torch.arange(1, 41).view(2, 1, 4, 5).expand(2, 2, 4, 5)
    value = pixel_contrast(z, labels, temperature=0.1).item()
    assert value == pytest.approx(pixel_contrast(z, None, temperature=0.1).item(), rel=1e-12)


def test_collapse_and_by_hand() -> None:
    labels = random_case(4, 8, images=1)[1]
    collapsed = torch.ones(1, 2, 3, 4, 8, dtype=torch.float64)
    value = pixel_contrast(collapsed, labels, temperature=0.1, background_anchors=True).item()
    assert value == pytest.approx(math.log(63), rel=1e-12)
    hand = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]] * 2, dtype=torch.float64)[None]
    value = pixel_contrast(hand, torch.tensor([[[[1, 0]], [[1, 0]]]]), temperature=1.0).item()
    assert value == pytest.approx(math.log(math.e + 2) - 1, rel=1e-12)


def test_perfect_classes_cost_the_logarithm_of_their_positives() -> None:
    labels = random_case(6, 5, classes=3)[1]
    z = torch.eye(3, dtype=torch.float64)[labels].movedim(-1, 2)
    counts = torch.bincount(labels.flatten())[1:].double()
    bound = (counts * (counts - 1).log()).sum() / counts.sum()
    value = pixel_contrast(z, labels, temperature=0.02).item()
    assert value == pytest.approx(bound.item(), rel=1e-9)


def test_a_class_with_one_pixel_is_left_out_but_stays_a_negative() -> None:
    z, labels = random_case(4, 5, classes=3)
    labels[0, 0, 0, 0] = 9
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1), z)
    assert gradient[0, 0, :, 0, 0].all()
    dropped = labels.clone()
    dropped[0, 0, 0, 0] = -1
    assert pixel_contrast(z, dropped, temperature=0.1).item() < value


@pytest.mark.parametrize(
    ("size", "label", "settings"),
    [
        ((4, 5), 0, {}),
        ((4, 5), 0, {"block": 2}),
        ((4, 5), 0, {"stride": 2}),
        ((4, 5), -1, {}),
        ((0, 5), 1, {}),
    ],
)
def test_nothing_to_contrast_is_zero_with_a_graph(
    size: tuple[int, ...], label: int, settings: dict[str, int]
) -> None:
    z, labels = random_case(*size)
    value, gradient = value_and_gradient(
        lambda z: pixel_contrast(z, labels.fill_(label), temperature=0.1, **settings), z
    )
    assert value == 0
    assert not gradient.any()


def test_a_single_pixel_has_nothing_to_contrast() -> None:
    z = torch.randn(1, 1, 4, 1, 1)
    value, gradient = value_and_gradient(
        lambda z: pixel_contrast(z, torch.ones(1, 1, 1, 1, dtype=torch.int64), temperature=0.1), z
    )
    assert value == 0
    assert not gradient.any()
    # two views of one pixel: the positive is all there is
    pair = torch.randn(1, 2, 4, 1, 1, dtype=torch.float64)
    assert pixel_contrast(pair, None, temperature=0.1).item() == pytest.approx(0, abs=1e-12)


def test_zero_embeddings_get_no_gradient(way: str) -> None:
    z, labels = random_case(4, 5)
    z[0, 1, :, 2, 3] = 0
    _, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1), z.float())
    assert gradient.isfinite().all()
    assert not gradient[0, 1, :, 2, 3].any()
    assert gradient.abs().max() < 10


def test_autocast_and_half_precision_compute_in_float32(way: str) -> None:
    z, labels = random_case(6, 5, width=16)
    exact, slope = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.07), z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.07), z.float())
    assert value == exact
    assert torch.equal(gradient, slope)
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.07), z.bfloat16())
    assert gradient.dtype == torch.bfloat16
    assert value == pytest.approx(exact, rel=1e-2)


def test_layout_of_memory_does_not_matter(way: str) -> None:
    z, labels = random_case(6, 5)
    value, gradient = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=0.1), z)
    other = z.movedim(2, -1).contiguous().movedim(-1, 2)
    turned = labels.movedim(1, -1).contiguous().movedim(-1, 1)
    again, slope = value_and_gradient(lambda z: pixel_contrast(z, turned, temperature=0.1), other)
    assert again == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient, slope)


def test_the_operators_keep_the_rules_of_the_compiler() -> None:
    z = unit(random_case(7, 3)[0].movedim(2, -1).flatten(0, -2)).requires_grad_()
    for scale in (10.0, 60.0):
        torch.library.opcheck(torch.ops.handful.log_denominators.default, (z, 11, scale, False))
        anchor, member = torch.tensor([3, 4, 8, 9]), torch.arange(len(z)) // 3
        for wanted in (True, False):
            torch.library.opcheck(
                torch.ops.handful.contrast_rows.default,
                (z if wanted else z.detach(), anchor, member, scale, "inside", False, wanted),
            )


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # the compiler's own
def test_compiled_is_the_same(way: str) -> None:
    z, labels = random_case(5, 6)

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return pixel_contrast(z * 2, labels, temperature=0.1) + z.square().mean()

    expected, slope = value_and_gradient(lambda z: loss(z, labels), z)
    compiled = torch.compile(loss, backend="aot_eager")
    value, gradient = value_and_gradient(lambda z: compiled(z, labels), z)
    assert value == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("rows", [True, False])
def test_memory_is_linear(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor ever made is the embeddings', a tile's or a block's, never the matrix."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    monkeypatch.setattr(streamed, "_few", lambda *_: rows)
    z, labels = random_case(61, 40, images=4, width=8)
    labels *= torch.arange(40) % 8 == 0
    z.requires_grad_()
    with Watch():
        pixel_contrast(z, labels, temperature=0.1).backward()
    piece = streamed_rows.BLOCK * z[:, :, 0].numel() if rows else streamed.TILE**2
    assert largest <= max(z.numel(), piece)


@pytest.mark.gpu
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_a_gpu_gives_the_same(products: str, temperature: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    z, labels = random_case(40, 61, width=24)
    expected, slope = value_and_gradient(lambda z: pixel_contrast(z, labels, temperature=temperature), z)
    settings = {"temperature": temperature, "products": products}
    value, gradient = value_and_gradient(
        lambda z: pixel_contrast(z, labels.cuda(), **settings),  # type: ignore[arg-type]
        z.float().cuda(),
    )
    tolerance = 1e-3 if products == "float32" else 5e-2
    assert value == pytest.approx(expected, rel=tolerance)
    assert (gradient.cpu() - slope).norm() <= tolerance * slope.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": torch.ones(2, 2, 3)}, "shape"),
        ({"z": torch.ones(2, 2, 3, 4, 5, dtype=torch.int64)}, "floating"),
        ({"z": torch.full((2, 2, 3, 4, 5), math.nan)}, "NaN"),
        ({"labels": torch.ones(2, 2, 5, 4, dtype=torch.int64)}, r"labels.*\(2, 2, 4, 5\).*\(2, 2, 5, 4\)"),
        ({"labels": torch.ones(2, 4, 5, dtype=torch.int64)}, "labels"),
        ({"labels": torch.ones(2, 2, 4, 5)}, "integer.*float32"),
        ({"labels": None, "z": torch.ones(2, 1, 3, 4, 5)}, "two views"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"stride": 2, "block": 2}, "one of them"),
        ({"stride": 0}, "stride"),
        ({"stride": 1.5}, "stride"),
        ({"block": 0}, "block"),
        ({"block": 6}, r"block 6.*\(4, 5\)"),
        ({"products": "float16"}, "products.*float16"),
        ({"form": "out"}, "form must be one of outside, inside, printed, negatives, found 'out'"),
        ({"z": torch.ones(2, 2, 3, 4, 5).double(), "products": "bfloat16"}, "float64"),
    ],
)
def test_bad_input_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {
        "z": torch.ones(2, 2, 3, 4, 5),
        "labels": torch.ones(2, 2, 4, 5, dtype=torch.int64),
        "temperature": 0.1,
    }
    pixel_contrast(**good)
    with pytest.raises(ValueError, match=words):
        pixel_contrast(**(good | change))
