"""Slices along several axes are the same voxels, lie where the volume has them, and vote as equals."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.artefacts import read_json
from handful.data.phantom import make_phantom
from handful.data.plan import make_plan, read_plan
from handful.data.plan_check import check_plan
from handful.data.planes import Order, in_planes, lead_and, undone
from handful.data.sampling import StoredCase, foreground_voxels
from handful.errors import UsageError
from handful.inference.model import Model, load_model
from handful.inference.predict import predict
from handful.inference.sliding import sliding_window
from handful.training.probe import UNCHANGED
from handful.training.recipe import resolve
from handful.training.run import pretrain, train
from handful.training.start import sources
from test_plan import dataset, fingerprint, symmetric
from test_predict import PLAN, make_run, noise

ORDERS: list[Order] = list(permutations((0, 1, 2)))


def stored() -> StoredCase:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    image = torch.from_numpy(rng.normal(size=(2, 4, 5, 6)).astype(np.float32))
    return StoredCase("a", image, torch.from_numpy(label), foreground_voxels(label, 3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize("order", ORDERS)
def test_a_turned_case_is_the_case_with_its_axes_in_that_order(order: Order) -> None:
    case = stored()
    (turned,) = in_planes([case], [order])
    assert turned.label is not None
    for whole, seen in ((case.image, turned.image), (case.label, turned.label)):
        assert isinstance(whole, torch.Tensor)
        lead = whole.ndim - 3
        expected = whole.permute(*range(lead), *(lead + axis for axis in order))
        assert seen.shape == tuple(expected.shape)
        box = (*[slice(None)] * lead, slice(1, 3), slice(0, 4), slice(2, 4))
        assert torch.equal(seen[box], expected[box])
        assert seen[box].data_ptr() in range(whole.data_ptr(), whole.data_ptr() + whole.nbytes), "a copy"
    assert turned.spacing_mm == tuple(case.spacing_mm[axis] for axis in order)
    everything = turned.label[(slice(None),) * 3]
    for index, voxels in enumerate(turned.foreground, start=1):
        assert {int(everything[tuple(voxel)]) for voxel in voxels} == {index}
    back = np.zeros((2, 4, 5, 6)).transpose(lead_and(order)).transpose(lead_and(undone(order)))
    assert back.shape == (2, 4, 5, 6)


def test_all_cases_of_a_plane_come_before_the_next() -> None:
    first, second = stored(), replace(stored(), name="b", label=None, foreground=())
    seen = in_planes([first, second], ORDERS[:3])
    assert [case.name for case in seen] == ["a", "b"] * 3
    assert [case.label is None for case in seen] == [False, True] * 3
    assert seen[:2] == [first, second]


@pytest.mark.parametrize(
    ("shape", "spacing", "orders"),
    [
        # D is head-foot, the last of RAS; the longer side of every slice lies where H or W of the first has it
        ((36, 50, 35), (1.0, 1.0, 1.0), ((0, 1, 2), (1, 2, 0), (2, 1, 0))),
        ((50, 36, 35), (1.0, 1.0, 1.05), ((0, 1, 2), (1, 0, 2), (2, 0, 1))),
        ((36, 50, 5), (1.0, 1.0, 1.0), ((0, 1, 2),)),
        ((36, 50, 35), (1.0, 1.0, 1.5), ((0, 1, 2),)),
    ],
)
def test_volumes_are_cut_along_all_axes_where_voxels_are_equally_long(
    shape: tuple[int, ...], spacing: tuple[float, ...], orders: tuple[Order, ...]
) -> None:
    plan = make_plan(fingerprint(shape=shape, spacing=spacing), dataset(), dims=2)
    assert plan.planes == orders
    assert (plan.spacing_mm[0] is None) == (len(orders) == 1)
    longest = [shape[axis] for axis in plan.axes]
    for order in plan.planes:
        assert all(side >= longest[axis] for side, axis in zip(plan.patch, order[1:]))
    assert (
        make_plan(fingerprint(shape=shape, spacing=spacing), dataset(), dims=2, planes=1).planes == orders[:1]
    )
    check_plan(plan, where="here")


def test_three_planes_of_unequal_voxels_or_of_volumes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.5 times as long"):
        make_plan(fingerprint(spacing=(1.0, 1.0, 1.5)), dataset(), dims=2, planes=3)
    with pytest.raises(UsageError, match="1 for a 3D plan"):
        make_plan(fingerprint(), dataset(), dims=3, planes=3)
    flat = make_plan(fingerprint(spacing=(1.0, 1.0, 1.0)), dataset(), dims=2)
    for change, words in (
        ({"planes": ((0, 1, 1),)}, "each of 0, 1 and 2"),
        ({"planes": ()}, "one order at least"),
        ({"spacing_mm": (None, 1.0, 1.0)}, "2D plan of one plane"),
    ):
        with pytest.raises(UsageError, match=words):
            check_plan(replace(flat, **change), where="here")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "one", "three"),
    [
        (("core", "edema"), (True, True), (True, True)),
        (
            ("kidney_l", "kidney_r"),
            (True, False),
            (False, False),
        ),  # in one plane rows run left-right, in two columns do
        (("Anterior", "Posterior"), (False, True), (False, True)),
    ],
)
def test_a_mirror_is_allowed_where_every_plane_allows_it(
    names: tuple[str, ...], one: tuple[bool, ...], three: tuple[bool, ...]
) -> None:
    seen = fingerprint(shape=(61, 80, 60), spacing=(1.0, 1.0, 1.0), places=symmetric(4))
    for planes, expected in ((1, one), (3, three)):
        plan = make_plan(seen, dataset(names=names), dims=2, planes=planes)
        assert plan.mirror == expected
        assert all(word in plan.reasons["mirror"].lower() for word in ("left-right", "front-back"))


def numbered(*names: str) -> list[StoredCase]:
    """Cases whose three channels say where along D, H and W a voxel lies, of unlike sides."""
    axes = torch.meshgrid(*(torch.arange(float(side)) for side in (20, 22, 24)), indexing="ij")
    label = torch.zeros(20, 22, 24, dtype=torch.uint8)
    return [StoredCase(name, torch.stack(axes), label, (), (1.0, 1.0, 1.0)) for name in names]


@pytest.mark.parametrize("together", [True, False])
def test_a_step_sees_one_plane_or_all_and_says_where_its_patches_lie_in_the_volume(together: bool) -> None:
    plan = replace(
        PLAN, dims=2, patch=(8, 8), mirror=(False, False), planes=((0, 1, 2), (1, 2, 0), (2, 0, 1))
    )
    source = sources(
        replace(resolve("pcl", default_steps=6), augment=UNCHANGED), plan, labelled=numbered("a"),
        unlabelled=numbered("b", "c"), one_plane=not together, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    seen = []
    for step in range(6):
        now = source(step)
        crops = now.draw_any(9)
        for image, low, high, position in zip(crops.image, crops.low, crops.high, crops.position):
            places = image.flatten(1)
            cut = int(
                (places.amax(1) == places.amin(1)).nonzero().squeeze()
            )  # the axis along which it is one slice
            seen.append((step, cut))
            if together:
                continue
            assert cut == now.order[0]
            assert low[cut] == places[cut, 0], "along the volume's own axes"
            assert high[cut] == low[cut] + 1
            assert sorted((high - low).tolist()) == [1, 8, 8]
            assert position[0] == pytest.approx((float(low[cut]) + 0.5) / (20, 22, 24)[cut])
            middle = (
                2 * places.mean(1) + 1
            )  # twice the middle of the crop, whose margin is even, or one voxel off
            assert ((low + high) - middle).abs().max() <= 1
    every = {cut for _, cut in seen}
    assert every == {0, 1, 2}
    alone = [{cut for step, cut in seen if step == number} for number in range(6)]
    assert alone == ([every] * 6 if together else [{0}, {1}, {2}] * 2)


class Columns(torch.nn.Module):
    """Say which column of the slice a pixel is in: what it says depends on how the volume is cut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[-1], dtype=x.dtype).expand(len(x), *x.shape[2:])
        return torch.stack([torch.zeros_like(place), place / 7 - 1], dim=1)


@pytest.mark.parametrize("scratch", [False, True])
def test_the_prediction_is_the_mean_over_planes(
    scratch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(
        PLAN,
        dims=2,
        patch=(16, 16),
        mirror=(False,) * 2,
        spacing_mm=(1.0, 1.0, 1.0),
        planes=((0, 1, 2), (1, 2, 0), (2, 0, 1)),
    )
    model = load_model(make_run(tmp_path, plan))
    model = Model(model.run, Columns(), plan, model.label_names, model.metadata, "")
    model.network.register_parameter("somewhere", torch.nn.Parameter(torch.zeros(1)))
    if scratch:
        monkeypatch.setitem(sliding_window.__kwdefaults__, "memory_limit", 1)
    image = noise(1, (1, 12, 9, 14))
    found = model.probabilities(image, scratch=tmp_path)
    assert isinstance(found, np.memmap) == scratch
    each = [
        replace(model, plan=replace(plan, planes=(order,))).probabilities(image, scratch=tmp_path)
        for order in plan.planes
    ]
    columns = [order[2] for order in plan.planes]
    assert sorted(columns) == [0, 1, 2]
    for part, axis in zip(each, columns):
        assert part.shape == (2, 12, 9, 14)
        assert np.ptp(part[1], axis=axis).min() > 0.2
        assert np.ptp(part[1], axis=tuple({0, 1, 2} - {axis})).max() < 1e-6
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)


def test_a_run_of_three_planes_trains_on_all_and_predicts(tmp_path: Path) -> None:
    data = make_phantom(
        tmp_path / "Phantom",
        patients=4,
        unlabelled=1,
        held_out=1,
        size=(22, 20, 18),
        spacing_mm=(3.0, 3.0, 3.0),
    )
    settings = ("plan.dims=2", "loop.rows=2")
    first = pretrain(data, tmp_path / "first", method="pcl", steps=2, set_=settings, quiet=True, threads=1)
    run = train(
        data, tmp_path / "run", method="supervised", steps=3, set_=settings, init=first, quiet=True, threads=1
    )
    assert len(read_plan(run / "plan.yaml").planes) == 3
    assert "3D" not in (run / "log.txt").read_text()
    predict(run, data, tmp_path / "out", held_out_only=False, device="cpu")
    record = read_json(tmp_path / "out" / "predictions.json")
    assert {entry["status"] for entry in record["cases"]} == {"written"}
    one = train(
        data,
        tmp_path / "one",
        method="supervised",
        steps=3,
        set_=(*settings, "plan.planes=1"),
        quiet=True,
        threads=1,
    )
    assert read_plan(one / "plan.yaml").planes == ((0, 1, 2),)
    assert read_plan(one / "plan.yaml").turned > 0
    sized = train(
        data, tmp_path / "sized", method="supervised", steps=3, set_=(*settings, "plan.patch=[16, 16]"), quiet=True,
        threads=1,
    )  # fmt: skip
    assert read_plan(sized / "plan.yaml").planes == ((0, 1, 2),), "published slices lie in one plane"
    assert read_plan(sized / "plan.yaml").turned == 0, "and are turned as published"
