"""Laws of the draws: pure in (seed, step), fair to cases, aligned with the volume, blind to hidden labels."""

import numpy as np
import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.data.preprocess import IGNORED_VOXEL
from handful.data.sampling import SamplingSettings, Source, StoredCase, _box, foreground_voxels
from handful.errors import DataError


def stored(shape: tuple[int, int, int], seed: int, *, labelled: bool = True) -> StoredCase:
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.uint8)
    label[shape[0] // 4, 2:4, 3:6] = 1
    label[shape[0] // 2, -3:, -4:] = 2
    label[0, 0, 0] = IGNORED_VOXEL
    image = torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32))
    return StoredCase(
        f"case{seed}",
        image,
        torch.from_numpy(label) if labelled else None,
        foreground_voxels(label, 3) if labelled else (),
        (1.0, 1.0, 1.0),
    )


def source(step: int, *, patch: tuple[int, ...] = (6, 10, 8), cases: int = 3, **changes: object) -> Source:
    fields: dict[str, object] = {
        "labelled": [stored((9 + i, 14, 11 + i), i) for i in range(cases)],
        "unlabelled": [stored((12, 9, 10), 10, labelled=False)],
        "patch": patch,
        "batch": 4,
        "classes": 3,
        "mirror": (False,) * len(patch),
        "augment": AugmentSettings(),
        "sampling": SamplingSettings(),
        "device": torch.device("cpu"),
        "seed": 3,
        "step": step,
    }
    return Source(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
def test_a_draw_is_a_pure_function_of_seed_and_step(patch: tuple[int, ...]) -> None:
    first, again, later = (source(step, patch=patch).draw_labelled(4) for step in (5, 5, 6))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, later.image)
    other_seed = source(5, patch=patch, seed=4).draw_labelled(4)
    assert not torch.equal(first.image, other_seed.image)
    view, repeated = (source(5, patch=patch).view(first) for _ in range(2))
    assert torch.equal(view.image, repeated.image)
    assert view.image.shape[2:] == patch == tuple(view.label.shape[1:])


def test_a_method_draws_its_own_numbers_from_seed_step_and_stream() -> None:
    def drawn(step: int, stream: int, **changes: object) -> list[float]:
        return torch.rand(4, generator=source(step, **changes).generator(stream=stream)).tolist()  # type: ignore[arg-type]

    assert drawn(5, 0) == drawn(5, 0)
    assert (
        len({tuple(drawn(*where)) for where in ((5, 0), (6, 0), (5, 1))} | {tuple(drawn(5, 0, seed=4))}) == 4
    )


def test_every_case_is_seen_equally_often() -> None:
    seen = torch.cat([source(step, cases=5).draw_labelled(3).case for step in range(50)])
    assert torch.bincount(seen, minlength=5).tolist() == [30] * 5


@pytest.mark.parametrize(("cases", "count"), [(5, 3), (5, 5), (7, 1), (20, 16), (24, 7), (24, 9), (100, 16)])
def test_no_case_is_drawn_twice_in_a_step_where_there_are_enough(cases: int, count: int) -> None:
    every = [source(step, cases=0)._pick_cases(cases, count, 0) for step in range(3 * cases)]
    assert all(len({*picks.tolist()}) == count for picks in every)
    seen = np.bincount(np.concatenate(every), minlength=cases)
    assert seen.tolist() == [3 * count] * cases, "equally often after as many steps as there are cases"
    orders = {tuple(picks) for picks in every}
    assert len(orders) > len(every) / 2 or count == 1, "in ever new company"


@pytest.mark.parametrize("centre", [(0, 0, 0), (4, 6, 5), (8, 13, 10)])
@pytest.mark.parametrize("size", [(3, 4, 5), (20, 6, 31)])
def test_a_box_equals_the_same_box_of_the_edge_padded_volume(
    centre: tuple[int, ...], size: tuple[int, ...]
) -> None:
    volume = torch.arange(9 * 14 * 11).reshape(1, 9, 14, 11)
    padded = np.pad(volume.numpy(), ((0, 0), (40, 40), (40, 40), (40, 40)), mode="edge")
    start = [40 + c - s // 2 for c, s in zip(centre, size, strict=True)]
    expected = padded[:, *(slice(a, a + s) for a, s in zip(start, size, strict=True))]
    assert np.array_equal(_box(volume, np.array(centre), size).numpy(), expected)
    label = np.pad(volume[0].numpy(), 40, constant_values=-7)[
        tuple(slice(a, a + s) for a, s in zip(start, size))
    ]
    assert np.array_equal(_box(volume[0], np.array(centre), size, outside=-7).numpy(), label)


def test_foreground_share_holds_over_steps_and_the_rest_is_uniform() -> None:
    """With a share of 1/3 and one item a step, every third step is centred on foreground."""
    quiet = AugmentSettings()
    hits = 0
    for step in range(60):
        drawn = source(
            step, patch=(1, 1, 1), sampling=SamplingSettings(foreground=1 / 3), augment=quiet
        ).draw_labelled(1)
        centre = tuple(s // 2 for s in drawn.label.shape[1:])
        hits += int(drawn.label[0, *centre] > 0)
    assert 18 <= hits <= 26  # 20 forced; a voxel in twenty or so is foreground by chance


def test_ignored_voxels_become_the_ignore_label_and_hidden_labels_never_appear() -> None:
    labels = torch.cat([source(step).draw_labelled(4).label.unique() for step in range(20)]).unique().tolist()
    assert labels == [-1, 0, 1, 2]
    assert source(0).draw_unlabelled(2).label is None
    assert source(0).draw_any(4).label is None


def test_foreground_voxels_are_foreground_and_thinned() -> None:
    label = np.zeros((7, 30, 20), dtype=np.uint8)
    label[1:6, 2:28, 3:18] = 1
    label[3, 4, 5] = 3
    found = foreground_voxels(label, 4, keep=100)
    assert [len(voxels) for voxels in found] == [100, 1]
    assert (label[tuple(found[0].T)] == 1).all()
    assert found[1].tolist() == [[3, 4, 5]]


def test_drawing_from_no_cases_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="no cases to draw from"):
        source(0, unlabelled=[]).draw_unlabelled(2)


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
def test_a_view_of_the_same_geometry_sees_the_same_pixels(patch: tuple[int, ...]) -> None:
    here = source(2, patch=patch)
    crops = here.draw_labelled(4)
    first = here.view(crops, stream=0, intensity=False)
    again = here.view(crops, stream=1, geometry=first.geometry, intensity=False)
    recoloured = here.view(crops, stream=1, geometry=first.geometry)
    assert torch.equal(first.image, again.image)
    assert first.label is not None
    assert recoloured.label is not None
    assert torch.equal(first.label, recoloured.label)
    assert not torch.equal(first.image, recoloured.image)


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
def test_recolouring_moves_no_pixel_and_is_drawn_by_stream(patch: tuple[int, ...]) -> None:
    here = source(2, patch=patch)
    clean = here.view(here.draw_labelled(4), intensity=False)
    first, again, other = (here.recolour(clean, stream=stream) for stream in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, clean.image)
    assert not torch.equal(first.image, other.image)
    assert first.geometry is clean.geometry
    assert first.label is clean.label
    colourless = {name: 0.0 for name in AugmentSettings.__dataclass_fields__ if name.startswith("p_")}
    still = source(2, patch=patch, augment=AugmentSettings(**colourless))
    assert torch.equal(still.recolour(clean).image, clean.image)


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
def test_boxes_that_are_partly_labelled(patch: tuple[int, ...]) -> None:
    here = source(2, patch=patch)
    drawn = here.draw_partly_labelled(4, share=0.5)
    labelled, others = here.draw_labelled(2), here.draw_unlabelled(2)
    assert drawn.label is not None
    assert torch.equal(drawn.image, torch.cat([labelled.image, others.image]))
    assert torch.equal(drawn.label[:2], labelled.label)
    assert (drawn.label[2:] == -1).all()
    assert drawn.case.tolist() == [*labelled.case.tolist(), 3, 3]  # after the three labelled cases
    assert (here.view(drawn).label[2:] == -1).all()
    assert (here.draw_partly_labelled(4, share=0.01).label[1:] == -1).all()  # at least one
    everything = source(2, patch=patch, unlabelled=[])
    assert torch.equal(everything.draw_partly_labelled(4, share=0.5).label, everything.draw_labelled(4).label)
    assert source(2, patch=patch, labelled=[]).draw_partly_labelled(4, share=0.5).label is None


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
def test_corners_name_the_voxels_of_an_unmoved_patch(patch: tuple[int, ...]) -> None:
    still = AugmentSettings(
        **{name: 0.0 for name in AugmentSettings.__dataclass_fields__ if name.startswith("p_")}
    )
    here = source(5, patch=patch, augment=still)
    crops = here.draw_labelled(6)
    images = here.view(crops).image
    for item in range(6):
        volume = here.labelled[int(crops.case[item])].image[(slice(None),)]
        index = [
            torch.arange(int(a), int(b)).clamp(0, n - 1)
            for a, b, n in zip(crops.low[item], crops.high[item], volume.shape[1:])
        ]
        cut = volume[:, index[0]][:, :, index[1]][..., index[2]]
        assert torch.equal(images[item], cut if len(patch) == 3 else cut[:, 0])
        centre = (crops.low[item] + torch.tensor((1,) * (3 - len(patch)) + patch) // 2 + 0.5) / torch.tensor(
            volume.shape[1:]
        )
        assert torch.allclose(crops.position[item], centre.double())


def test_smaller_patches_are_multiples_and_never_larger_than_planned() -> None:
    here = source(0, patch=(40, 56, 8))
    assert here.smaller(0.5, multiple=(8, 8, 8)).patch == (16, 32, 8)
    assert here.smaller(0.1, multiple=(8, 8, 4)).patch == (16, 16, 8)
    assert here.smaller(1.0, multiple=(8, 8, 8)).patch == here.patch


def test_parts_are_equal_shares_of_the_places_along_the_slice_axis() -> None:
    seen: dict[int, set[int]] = {}
    for step in range(40):
        drawn = source(step, patch=(10, 8), cases=2).draw_parts(2, 3)
        assert torch.equal(drawn.case[:3], drawn.case[:1].expand(3))  # volume by volume
        for case, slice_, part in zip(drawn.case, drawn.low[:, 0], [0, 1, 2] * 2):
            if case == 1:  # 10 slices: 3, 3 and 4
                seen.setdefault(part, set()).add(int(slice_))
    assert seen == {0: {0, 1, 2}, 1: {3, 4, 5}, 2: {6, 7, 8, 9}}
    deep = source(0, patch=(6, 10, 8), cases=1, unlabelled=[]).draw_parts(1, 4)  # 9 slices: 4 places for 6
    assert deep.low[:, 0].tolist() == [0, 1, 2, 3]


def test_too_few_places_for_the_parts_are_said() -> None:
    with pytest.raises(DataError, match="room for 4 patches of 6 slices one slice apart"):
        source(0, cases=1, unlabelled=[]).draw_parts(1, 5)


@pytest.mark.parametrize("patch", [(6, 10, 8), (10, 8)])
@pytest.mark.parametrize("draw", ["labelled", "unlabelled", "any", "parts"])
def test_the_rows_of_all_processes_are_those_of_one_with_the_whole_batch(
    patch: tuple[int, ...], draw: str
) -> None:
    def drawn(at: Source, share: int) -> list[torch.Tensor]:
        if draw == "parts":
            crops = at.draw_parts(2 * share, 2)
        else:
            crops = getattr(at, f"draw_{draw}")(4 * share)
        plain = at.view(crops, stream=1, intensity=False)
        assert crops.everywhere is not None
        assert torch.equal(crops.everywhere.low.chunk(at.world)[at.rank], crops.low)
        seen = (*crops[:-1], *at.view(crops, stream=2), *plain, at.recolour(plain).image)
        flat = [field for each in seen for field in (each if isinstance(each, tuple) else (each,))]
        return [field for field in flat if isinstance(field, torch.Tensor)]

    whole = drawn(source(7, patch=patch), share=3)
    ranks = [drawn(source(7, patch=patch, rank=rank, world=3), share=1) for rank in range(3)]
    assert len(whole) > 15
    for one, several in zip(whole, zip(*ranks, strict=True), strict=True):
        assert torch.equal(one, torch.cat(several))


def test_every_process_knows_where_the_boxes_of_all_are() -> None:
    ranks = [source(7, rank=rank, world=2).draw_any(3).everywhere for rank in range(2)]
    whole = source(7).draw_any(6)
    for one, first, second in zip(whole[2:6], *ranks, strict=True):
        assert torch.equal(one, first)
        assert torch.equal(one, second)


def test_every_process_has_its_own_numbers_for_a_method() -> None:
    drawn = {
        source(5, rank=rank, world=world).generator().initial_seed()
        for rank, world in ((0, 2), (1, 2), (2, 3))
    }
    assert len(drawn) == 3
    assert source(5, world=2).generator().initial_seed() == source(5).generator().initial_seed()
