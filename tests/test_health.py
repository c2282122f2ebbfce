"""Laws of the health meter: closed forms on hand-made embeddings, no false alarm, and a collapse that is said."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handful.errors import RunError
from handful.methods.contract import Watched, watched_places
from handful.methods.pcl import PCL, Settings
from handful.networks.build import build_network, unet_architecture
from handful.training.health import (
    ENOUGH,
    GRACE,
    ROWS,
    Meter,
    alignment,
    collapsed,
    effective_rank,
    mean_deviation,
    position_error,
    shared_parameters,
    term_gradients,
    uniformity,
)
from handful.training.probe import UNCHANGED
from test_methods import made, phantom_source

Row = dict[str, float]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


AXES = torch.cat([torch.eye(7), -torch.eye(7)])


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(5 * torch.eye(7)[:3].repeat(4, 1)).item() == pytest.approx(3)
    assert effective_rank(torch.ones(9, 4)).item() == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(9, 4)).item() == 0
    # singular values 3 and 1: shares 3/4 and 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))).item() == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize("shape", [(40, 13), (13, 40)])
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    z = random(*shape) * torch.linspace(0.01, 3, shape[1])
    share = torch.linalg.svdvals(z.double())
    share = share / share.sum()
    assert effective_rank(z).item() == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-5)
    assert effective_rank(z).item() == pytest.approx(effective_rank(100 * z).item())
    rotation = torch.linalg.qr(random(shape[1], shape[1], seed=1)).Q
    assert effective_rank(z).item() == pytest.approx(effective_rank(z @ rotation).item(), rel=1e-4)


def test_rounding_does_not_hide_a_collapse_from_the_rank() -> None:
    z = random(1, 512).repeat(256, 1)
    assert effective_rank(z + 1e-7 * random(256, 512, seed=1)).item() < 1.01
    assert effective_rank((z + 1e-4 * random(256, 512, seed=1)).bfloat16()).item() < 1.2


def test_deviation_is_one_on_the_whole_sphere_and_zero_at_a_point() -> None:
    assert mean_deviation(AXES).item() == pytest.approx(1)
    assert mean_deviation(random(4000, 32)).item() == pytest.approx(1, abs=0.02)
    assert mean_deviation(torch.full((9, 5), 3.0)).item() == pytest.approx(0, abs=1e-6)
    # two orthogonal directions of four, evenly: deviation 1/2 in two dimensions, times sqrt(4), over 4 dimensions
    assert mean_deviation(torch.eye(4)[[0, 1]]).item() == pytest.approx(0.5)


def test_only_directions_count() -> None:
    z, lengths = random(20, 6), random(20, 1, seed=1).exp()
    position = torch.rand(20, generator=torch.Generator().manual_seed(2))
    assert mean_deviation(z * lengths).item() == pytest.approx(mean_deviation(z).item(), rel=1e-5)
    assert uniformity(z * lengths).item() == pytest.approx(uniformity(z).item(), rel=1e-5)
    assert alignment(z * lengths, z).item() == pytest.approx(0, abs=1e-6)
    assert position_error(z * lengths, position)[0].item() == pytest.approx(
        position_error(z, position)[0].item()
    )


def test_alignment_is_the_squared_distance_of_views() -> None:
    z = random(6, 5)
    assert alignment(z, 3 * z).item() == pytest.approx(0, abs=1e-6)
    assert alignment(z, -z).item() == pytest.approx(4)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="same shape"):
        alignment(z, z[:3])


def test_uniformity_is_its_definition() -> None:
    assert uniformity(torch.ones(4, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(5)).item() == pytest.approx(-4)  # every squared distance is 2
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).item() == pytest.approx(-8)
    z = random(9, 4)
    u = z / z.norm(dim=1, keepdim=True)
    slow = [math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(9) for j in range(i)]
    assert uniformity(z).item() == pytest.approx(math.log(sum(slow) / len(slow)), rel=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(z[:1])


def test_position_is_read_off_neighbours() -> None:
    """On an arc in the order of positions two neighbours give every position but the two at the ends."""
    position = torch.arange(11) / 10
    arc = torch.stack([position.cos(), position.sin()], dim=1)
    error, chance = position_error(arc, position, neighbours=2)
    assert error.item() == pytest.approx(2 * 0.15 / 11, abs=1e-6)
    assert chance.item() == pytest.approx((0.5 + 0.4 + 0.3 + 0.2 + 0.1) * 2 / 11)


def test_position_cannot_be_read_off_a_point_or_noise() -> None:
    position = torch.rand(200, generator=torch.Generator().manual_seed(1))
    for z in (torch.ones(200, 8), random(200, 8)):
        error, chance = position_error(z, position)
        assert error > 0.95 * chance
    # a tight cluster keeps its order: it is the direction from its middle that counts
    arc = torch.stack([position, torch.ones(200) * 1e4], dim=1).double()
    error, chance = position_error(arc, position)
    assert error < 0.1 * chance


def test_measures_reject_what_they_cannot_measure() -> None:
    for measure in (effective_rank, mean_deviation, uniformity):
        with pytest.raises(ValueError, match="must be"):
            measure(random(3, 4, 5))
        with pytest.raises(ValueError, match="NaN"):
            measure(torch.full((3, 4), torch.nan))
    with pytest.raises(ValueError, match="position must have shape"):
        position_error(random(9, 4), torch.rand(8))
    with pytest.raises(ValueError, match="not 9"):
        position_error(random(9, 4), torch.rand(9), neighbours=9)


def test_the_meter_measures_the_last_items() -> None:
    meter = Meter(items=40)
    batches = [random(12, 2, 6, seed=i) for i in range(5)]
    places = [torch.rand(12, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    for number, (z, position) in enumerate(zip(batches, places)):
        assert bool(meter.row()) == (12 * number >= ENOUGH)
        meter.add(Watched(z.bfloat16() if number == 0 else z, position.double()))
    last = torch.cat(batches)[-40:]
    error, chance = position_error(last[:, 0], torch.cat(places)[-40:])
    assert meter.row() == {
        "health/effective_rank": pytest.approx(effective_rank(last[:, 0] / last[:, 0].norm(dim=1)[:, None])),
        "health/deviation": pytest.approx(mean_deviation(last[:, 0])),
        "health/uniformity": pytest.approx(uniformity(last[:, 0])),
        "health/alignment": pytest.approx(alignment(last[:, 0], last[:, 1])),
        "health/position_error": pytest.approx(error),
        "health/position_chance": pytest.approx(chance),
    }
    assert meter.together == 24


def test_positions_along_different_axes_are_not_compared() -> None:
    """Two stacks of slices on one arc, in opposite order: of each its neighbours tell the position, of both none."""
    position = torch.linspace(0, 1, 60)
    arc = torch.stack([position.cos(), position.sin()], dim=1)[:, None]
    apart, mixed = Meter(), Meter()
    for axis, where in enumerate((position, 1 - position)):
        apart.add(Watched(arc, where, axis))
        mixed.add(Watched(arc, where))
    one = Meter()
    one.add(Watched(arc, position))
    assert apart.row()["health/position_error"] == pytest.approx(one.row()["health/position_error"], rel=1e-3)
    assert mixed.row()["health/position_error"] > 5 * one.row()["health/position_error"]
    again = Meter()
    again.load_state_dict(apart.state_dict())
    assert again.row() == apart.row()


def test_a_stage_that_watches_nothing_leaves_no_measure_of_the_one_before() -> None:
    meter = Meter()
    meter.add(Watched(random(50, 2, 6)))
    assert meter.row()
    meter.add(None)
    assert meter.row() == {}


def test_the_meter_writes_only_what_there_is() -> None:
    meter = Meter()
    meter.add(Watched(random(50, 1, 6, seed=1).requires_grad_()))
    assert meter.row().keys() == {"health/effective_rank", "health/deviation", "health/uniformity"}
    assert not meter.embeddings.requires_grad
    meter.add(Watched(random(50, 2, 6), torch.rand(50)))  # another stage, with two views
    assert "health/position_error" in meter.row()
    assert len(meter.embeddings) == 50


def test_views_that_differ_do_not_pass_for_spread() -> None:
    """A student and a teacher that each collapsed, to different points."""
    meter = Meter()
    meter.add(Watched(torch.eye(6)[:2].repeat(64, 1, 1)))
    assert meter.row()["health/deviation"] == pytest.approx(0, abs=1e-6)
    assert meter.row()["health/effective_rank"] == pytest.approx(1, abs=1e-6)


def test_a_resumed_meter_writes_the_same_rows() -> None:
    meter, resumed = Meter(items=64), Meter(items=64)
    for seed in range(4):
        meter.add(Watched(random(20, 2, 6, seed=seed), torch.rand(20)))
    file = io.BytesIO()
    torch.save(meter.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for held in (meter, resumed):
        held.add(Watched(random(20, 2, 6, seed=9), torch.full((20,), 0.5)))
    assert resumed.row() == meter.row()
    assert resumed.together == meter.together == 40
    fresh = Meter()
    fresh.load_state_dict(Meter().state_dict())
    assert fresh.row() == {}


def rows(count: int = ROWS, **values: float) -> list[dict[str, float]]:
    point = {"deviation": 0.001, "effective_rank": 1.02, "position_error": 0.26, "position_chance": 0.25}
    named = {name: value for name, value in (point | values).items() if name != "loss"}
    return [
        {"step": step, "loss": values.get("loss", 1.7), **{f"health/{k}": v for k, v in named.items()}}
        for step in range(count)
    ]


def test_a_constant_embedding_is_called_collapsed() -> None:
    meter = Meter()
    for _ in range(20):
        meter.add(Watched(random(1, 1, 32).repeat(16, 2, 1), torch.rand(16)))
    row = {"loss": math.log(31), **meter.row()}
    said = collapsed([row] * ROWS, progress=0.5, together=meter.together)
    assert said is not None
    assert "loss stands at 3.4340 = ln(32 - 1)" in said
    assert "loop.lr" in said
    assert "stop_on_collapse=false" in said
    with pytest.raises(RunError, match="collapsed"):
        raise RunError(said)


def test_collapse_needs_time_and_every_row() -> None:
    assert collapsed(rows(), progress=GRACE) is not None
    assert collapsed(rows(), progress=GRACE - 0.01) is None  # fresh networks start nearly so
    assert collapsed(rows(ROWS - 1), progress=0.9) is None
    assert collapsed([*rows(30, deviation=0.5), *rows()], progress=0.9) is not None
    assert collapsed([*rows(), *rows(1, deviation=0.02)], progress=0.9) is None
    assert collapsed([*rows(), *rows(1, effective_rank=2.0)], progress=0.9) is None
    assert collapsed([{"loss": 1.0}] * ROWS, progress=0.9) is None  # a method that watches nothing
    assert collapsed([], progress=0.9) is None


def test_close_embeddings_that_know_their_place_are_left_alone() -> None:
    informed = rows(position_error=0.08)
    assert collapsed(informed, progress=0.9, together=32) is None
    frozen = rows(position_error=0.08, loss=math.log(31) * 1.0005)
    assert collapsed(frozen, progress=0.9, together=32) is not None
    blind = [{k: v for k, v in row.items() if "position" not in k} for row in informed]
    assert collapsed(blind, progress=0.9) is not None  # nothing speaks for them


def test_the_frozen_value_alone_is_no_collapse() -> None:
    """An untrained network's loss stands there too."""
    assert collapsed(rows(loss=math.log(31), deviation=0.3), progress=0.9, together=32) is None


def test_the_gradient_of_each_term_is_its_own() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    other = nn.Parameter(torch.tensor(2.0))
    terms = {"squares": w.square().sum(), "elsewhere": other * 5, "nothing": torch.zeros(())}
    norms = term_gradients(terms, [w])
    assert {name: norm.item() for name, norm in norms.items()} == {
        "health/gradient_squares": pytest.approx(10),
        "health/gradient_elsewhere": 0,
        "health/gradient_nothing": 0,
    }
    assert w.grad is None
    torch.stack(list(terms.values())).sum().backward()  # the graph is still there
    assert torch.equal(w.grad, torch.tensor([6.0, 8.0]))
    assert term_gradients({}, [w]) == {}


def test_terms_are_measured_at_the_deepest_level_they_share() -> None:
    method = made("pcl", 2)
    shared = shared_parameters(method.exports())
    deepest = dict(method.encoder.levels[-1].named_parameters())
    assert {id(p) for p in shared} == {id(p) for p in deepest.values() if p.ndim > 1}
    loss = method.step(method.batch(phantom_source(2)), 0.5).loss
    norms = term_gradients({"contrast": loss, "half": loss / 2}, shared)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in shared))
    assert norms["health/gradient_contrast"].item() == pytest.approx(norm, rel=1e-5)
    assert norms["health/gradient_half"].item() == pytest.approx(norm / 2, rel=1e-5)
    assert {id(p) for p in shared_parameters(made("supervised", 3).exports())}
    assert shared_parameters({"decoder": nn.Linear(2, 2)}) == []


@pytest.mark.parametrize("size", [(5, 7), (40, 30), (4, 6, 5)])
def test_watched_places_lie_all_over_the_maps_and_keep_their_views_together(size: tuple[int, ...]) -> None:
    views = torch.arange(3 * math.prod(size)).view(3, 1, 1, *size).float()
    maps = torch.cat([views, -views], dim=1).expand(3, 2, 4, *size).requires_grad_()
    z = watched_places(maps).embeddings
    count = 3 * math.prod(size)
    assert len(z) == math.ceil(count / math.ceil(count / 256)) <= 256
    assert z.shape[1:] == (2, 4)
    assert not z.requires_grad
    assert torch.equal(z[:, 0], -z[:, 1]), "the same place in both views"
    steps = z[:, 0, 0].diff()
    assert steps.unique().tolist() == [math.ceil(count / 256)], "evenly, from the first image to the last"


@pytest.mark.parametrize("name", ["sscl", "gcl"])
@pytest.mark.parametrize("dims", [2, 3])
def test_local_stages_are_watched_and_a_point_stops_them(name: str, dims: int) -> None:
    """They watched nothing once: a collapse of the local stage went unseen."""
    method = made(name, dims)
    watched = method.step(method.batch(phantom_source(dims, progress=0.9)), 0.9).watched
    assert watched is not None
    assert watched.stops
    count, views, _ = watched.embeddings.shape
    assert views == 2
    assert 8 <= count <= 256
    for parameter in method.parameters():
        parameter.data.zero_()
    meter = Meter()
    for step in range(ROWS):
        source = phantom_source(dims, step=step, progress=0.9)
        point = method.step(method.batch(source), 0.9).watched
        assert point is not None
        meter.add(point)
    assert collapsed([{"loss": 1.0, **meter.row()}] * ROWS, progress=0.9, together=meter.together) is not None


@pytest.mark.parametrize("name", ["rotation", "mae", "models_genesis", "supervised_pretrain"])
@pytest.mark.parametrize("dims", [2, 3])
def test_features_that_no_term_keeps_apart_are_measured_and_stop_nothing(name: str, dims: int) -> None:
    method = made(name, dims)
    batch = method.batch(phantom_source(dims))
    watched = method.step(batch, 0.5).watched
    assert watched is not None
    assert not watched.stops
    assert not watched.embeddings.requires_grad
    images = next(value for value in batch if value.ndim == dims + 2)
    assert watched.embeddings.shape == (len(images), 1, 8)


def small_pcl(norm: str) -> PCL:
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=2, in_channels=1, classes=3, widths=(8, 16, 24), strides=((2, 2),) * 2, kernels=((3, 3),) * 3,
            blocks=1, kind="plain", norm=norm, deep_supervision=False,
        )
    )  # fmt: skip
    return PCL(network, Settings(width=64))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_that_has_not_learnt_yet_is_not_called_collapsed(norm: str) -> None:
    row = {"loss": math.log(31), **measured(small_pcl(norm))}
    assert row["health/deviation"] < 0.3  # although it looks nearly so
    assert collapsed([row] * ROWS, progress=0.9, together=32) is None


def batch_of(method: PCL, step: int) -> Any:
    source = replace(phantom_source(2, step=step), augment=replace(UNCHANGED, p_noise=1, p_brightness=0.5))
    return method.batch(source)


def measured(method: PCL) -> dict[str, float]:
    meter = Meter()
    with torch.no_grad():
        for step in range(100, 106):
            meter.add(method.step(batch_of(method, step), 0.5).watched)
    return meter.row()


def test_pcl_learns_positions_and_the_meter_sees_it() -> None:
    method, meter, written = small_pcl("batch"), Meter(items=64), []
    optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
    before = measured(method)
    for step in range(24):
        optimiser.zero_grad()
        output = method.step(batch_of(method, step), step / 24)
        output.loss.backward()
        optimiser.step()
        meter.add(output.watched)
        written.append({"loss": output.loss.item(), **meter.row()})
    assert all("health/deviation" in row for row in written[-ROWS:])
    assert collapsed(written, progress=1.0, together=meter.together) is None
    after = measured(method)
    # three slices of twelve are empty and others look alike: no network gets below about 0.6 of chance here
    assert after["health/position_error"] < 0.75 * after["health/position_chance"]
    assert after["health/position_error"] < 0.9 * before["health/position_error"]


def test_views_drawn_together_by_nothing_else_collapse_and_the_meter_sees_it() -> None:
    """Agreement of views without negatives, predictor or teacher: the textbook collapse."""
    method, meter, written = small_pcl("instance"), Meter(items=64), []
    optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
    for step in range(40):
        optimiser.zero_grad()
        batch = batch_of(method, step)
        first, second = method.head(method.encoder(torch.cat([batch.first, batch.second]))[-1]).chunk(2)
        loss = alignment(first, second)
        loss.backward()
        optimiser.step()
        meter.add(Watched(torch.stack([first, second], dim=1), batch.position[:, 0]))
        written.append({"loss": loss.item(), **meter.row()})
    said = collapsed(written, progress=1.0, together=meter.together)
    assert said is not None
    assert "stands at" not in said  # its loss is no contrast
