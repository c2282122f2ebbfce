"""Preprocessing: the way to the network's grid and the way back."""

import dataclasses
from itertools import permutations, product

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy import ndimage

from handful.data.intensity import background_value, centre_and_spread
from handful.data.io import read_image, read_label
from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.data.preprocess import IGNORED_VOXEL, normalise, prepare, restore, restore_labels
from handful.data.resampling import resample, resample_labels, resampled_argmax
from handful.data.volume import Volume
from handful.errors import DataError


def plan_for(**changes) -> Plan:
    plan = Plan(
        dims=3,
        axes=(2, 1, 0),
        spacing_mm=(3.0, 1.5, 1.25),
        patch=(8, 16, 16),
        batch=2,
        channels=(Normalisation(),),
        label_values=(0, 3, 700),
        label_names=("background", "organ", "lesion"),
        mirror=(False, False, False),
        network=NetworkPlan(widths=(8, 16), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3))),
    )
    return dataclasses.replace(plan, **changes)


def ellipsoids(shape: tuple[int, int, int]) -> np.ndarray:
    """Label values 0, 3, 700: an ellipsoid in an ellipsoid, off centre."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    outer = (x - 0.1) ** 2 / 0.5 + (y + 0.1) ** 2 / 0.6 + z**2 / 0.7 < 1
    inner = (x - 0.3) ** 2 / 0.1 + (y + 0.2) ** 2 / 0.12 + (z - 0.1) ** 2 / 0.2 < 1
    return np.where(inner, 700, np.where(outer, 3, 0)).astype(np.int16)


def volumes(shape=(21, 26, 12), spacing=(1.25, 1.5, 3.0), affine=None) -> tuple[Volume, Volume]:
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    affine[:3, 3] = (-30.0, 12.5, 71.0)
    rng = np.random.default_rng(1)
    label = ellipsoids(shape)
    image = (rng.normal(size=shape) * 20 + label % 100 * 30).astype(np.float32)
    return Volume(image[None], affine), Volume(label[None], affine)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def one_hot(label: np.ndarray, plan: Plan) -> np.ndarray:
    return np.stack([label == index for index in range(len(plan.label_values))]).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def test_all_48_orientations_of_a_file_give_one_array_and_return_bit_for_bit():
    plan, (image, label) = plan_for(), volumes()
    expected = prepare(image, label, plan)
    assert expected.image.shape == (1, 12, 26, 21)
    count = 0
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation = np.array(list(zip(order, flips)), float)
        affine = image.affine @ inv_ornt_aff(orientation, image.shape)
        turned = Volume(apply_orientation(image.array[0], orientation)[None], affine)
        turned_label = Volume(apply_orientation(label.array[0], orientation)[None], affine)
        prepared = prepare(turned, turned_label, plan)
        np.testing.assert_array_equal(prepared.image, expected.image)
        np.testing.assert_array_equal(prepared.label, expected.label)
        assert prepared.geometry.affine is affine
        back = restore_labels(one_hot(prepared.label, plan), prepared.geometry, plan)
        np.testing.assert_array_equal(back, turned_label.array[0])
        indices = restore(prepared.label, prepared.geometry, plan)
        np.testing.assert_array_equal(np.array(plan.label_values)[indices], turned_label.array[0])
        np.testing.assert_array_equal(restore(prepared.image, prepared.geometry, plan)[0].shape, turned.shape)
        count += 1
    assert count == 48


@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize("spacing_mm", [(3.0, 1.0, 1.1), (2.0, 2.2, 0.9), (None, 1.1, 1.9)])
def test_round_trip_of_an_oblique_anisotropic_volume(handedness, spacing_mm):
    affine = np.eye(4)
    affine[:3, :3] = rotation((12.0, -20.0, 9.0)) @ np.diag([0.9 * handedness, 1.2, 4.0])
    image, label = volumes((41, 36, 14), affine=affine)
    plan = plan_for(spacing_mm=spacing_mm, dims=2 if spacing_mm[0] is None else 3)
    prepared = prepare(image, label, plan)
    assert prepared.label.shape == prepared.image.shape[1:] == prepared.geometry.grid
    for mm, target in zip(prepared.geometry.spacing_mm, spacing_mm):
        assert target is None or abs(mm / target - 1) < 0.05
    extents = np.multiply(prepared.geometry.grid, prepared.geometry.spacing_mm)
    np.testing.assert_allclose(extents, np.multiply(image.shape, image.spacing_mm)[[2, 1, 0]])
    back = restore_labels(one_hot(prepared.label, plan), prepared.geometry, plan)
    assert back.shape == image.shape
    for value in (3, 700):
        assert dice(back == value, label.array[0] == value) > 0.9


def test_voxels_stay_at_their_place_in_millimetres():
    shape, spacing = (31, 26, 17), (1.0, 1.6, 2.5)
    affine = np.diag([*spacing, 1.0])
    grid = np.indices(shape)
    # a plane in millimetres stays this plane under any interpolation, away from the repeated edges
    millimetres = sum(w * (g + 0.5) * s for w, g, s in zip((1.0, 0.5, -0.7), grid, spacing))
    plan = plan_for(
        spacing_mm=(1.7, 1.1, 1.4), channels=(Normalisation(kind="window", low=-1e6, high=1e6, spread=100.0),)
    )
    prepared = prepare(Volume(millimetres[None].astype(np.float32), affine), None, plan)
    mm = [(np.arange(n) + 0.5) * s for n, s in zip(prepared.geometry.grid, prepared.geometry.spacing_mm)]
    expected = (-0.7 * mm[0][:, None, None] + 0.5 * mm[1][None, :, None] + 1.0 * mm[2][None, None, :]) / 100
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(prepared.image[0][inner], expected[inner], atol=1e-3)
    back = restore(prepared.image, prepared.geometry, plan)[0]
    np.testing.assert_allclose(back[10:-10, 9:-9, 6:-6], millimetres[10:-10, 9:-9, 6:-6] / 100, atol=2e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_resampling_equals_the_spline_of_scipy(order):
    array = np.random.default_rng(0).normal(size=(2, 9, 14, 20)).astype(np.float32)
    for shape in [(9, 20, 11), (5, 14, 33), (12, 7, 20)]:
        zoom = np.divide(shape, array.shape[1:])
        expected = np.stack(
            [ndimage.zoom(a.astype(float), zoom, order=order, mode="nearest", grid_mode=True) for a in array]
        )
        np.testing.assert_allclose(resample(array, shape, orders=(order,) * 3), expected, atol=2e-6)


def test_resampling_keeps_constants_and_leaves_equal_grids_alone():
    constant = np.full((1, 7, 9, 12), 3.25, np.float32)
    np.testing.assert_allclose(resample(constant, (9, 7, 30), orders=(3, 3, 1)), 3.25, rtol=1e-6)
    array = np.random.default_rng(0).normal(size=(3, 7, 9, 12)).astype(np.float32)
    assert resample(array, (7, 9, 12), orders=(3, 3, 3)) is array
    single = resample(array[:, :1], (4, 9, 12), orders=(3, 3, 3))
    assert all(np.array_equal(single[:, i], array[:, 0]) for i in range(4))


def slow_resampled_labels(label: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    classes = np.unique(label)
    zoom = np.divide(shape, label.shape)
    scores = [
        ndimage.zoom((label == c).astype(float), zoom, order=1, mode="nearest", grid_mode=True)
        for c in classes
    ]
    return classes[np.argmax(np.round(scores, 5), axis=0)]


def test_labels_are_resampled_class_by_class():
    label = ndimage.zoom(np.random.default_rng(3).integers(0, 5, (4, 5, 6)), (3, 2, 4), order=0).astype(
        np.uint8
    )
    label[label == 4] = 255
    for shape in [(12, 17, 15), (7, 10, 31), (25, 6, 9)]:
        result = resample_labels(label, shape)
        slow = slow_resampled_labels(label, shape)
        assert np.mean(result == slow) > 0.999  # ties may fall either way by rounding
        assert set(np.unique(result)) <= set(np.unique(label))
    assert resample_labels(label, label.shape) is label


def test_labels_of_probabilities_equal_the_argmax_of_the_resampled_probabilities():
    rng = np.random.default_rng(5)
    scores = ndimage.gaussian_filter(rng.normal(size=(6, 11, 9, 14)), (0, 2, 2, 2)).astype(np.float32)
    for sharpness in (1.0, 100.0):
        probabilities = np.exp((scores - scores.max()) * sharpness)
        probabilities /= probabilities.sum(axis=0)
        plan = plan_for(
            label_values=(0, 2, 4, 6, 8, 10), label_names=tuple("abcdef"), spacing_mm=(2.0, 2.0, 1.0)
        )
        geometry = prepare(volumes((17, 13, 15), (0.8, 1.4, 1.5))[0], None, plan).geometry
        full = restore(resample(probabilities, geometry.grid, orders=(1, 1, 1)), geometry, plan)
        np.testing.assert_allclose(full.sum(axis=0), 1, atol=1e-5)
        labels = restore_labels(resample(probabilities, geometry.grid, orders=(1, 1, 1)), geometry, plan)
        assert labels.dtype == np.uint8
        assert np.mean(labels == 2 * full.argmax(axis=0)) > 0.999
    # logits, whatever their sum, have the same winner
    assert np.array_equal(resampled_argmax(scores, (11, 9, 14)), scores.argmax(axis=0))


def test_ignored_voxels_are_marked_and_undeclared_values_refused():
    image, label = volumes()
    label.array[0, 3:6, 4, 5] = 90
    with pytest.raises(DataError, match=r"\[90\]"):
        prepare(image, label, plan_for())
    prepared = prepare(image, label, plan_for(ignore_value=90))
    assert np.count_nonzero(prepared.label == IGNORED_VOXEL) == 3
    label.array[0, 3, 4, 5] = -(2**15)
    with pytest.raises(DataError, match="-32768"):
        prepare(image, label, plan_for(ignore_value=90))
    wide = Volume(label.array.astype(np.int64), label.affine)
    wide.array[0, 3, 4, 5] = 2**40
    with pytest.raises(DataError, match=str(2**40)):
        prepare(image, wide, plan_for(ignore_value=90))


def test_errors_in_words():
    image, label = volumes()
    with pytest.raises(DataError, match="plan was made for 2"):
        prepare(image, label, plan_for(channels=(Normalisation(), Normalisation())))
    shifted = label.affine.copy()
    shifted[0, 3] += 5
    with pytest.raises(DataError, match="does not lie on the image"):
        prepare(image, Volume(label.array, shifted), plan_for())
    image.array[0, 2, 3, 4] = np.nan
    with pytest.raises(DataError, match="1 voxels are NaN"):
        prepare(image, None, plan_for())


def test_zscore_does_not_see_scale_outliers_or_how_much_background_there_is():
    rng = np.random.default_rng(2)
    tissue = rng.gamma(4.0, 50.0, size=(30, 25, 20)).astype(np.float32)
    expected = normalise(tissue, Normalisation())
    assert abs(expected.mean()) < 0.05
    assert abs(expected.std() - 1) < 0.1
    np.testing.assert_allclose(normalise(tissue * 1e4 + 77, Normalisation()), expected, atol=2e-3)
    spoiled = tissue.copy()
    spoiled[5, 5, 5] = 1e7
    np.testing.assert_allclose(
        np.delete(normalise(spoiled, Normalisation()), 0), np.delete(expected, 0), atol=6.1
    )
    np.testing.assert_allclose(centre_and_spread(spoiled), centre_and_spread(tissue), rtol=1e-2)
    for width in (1, 4, 11):
        padded = np.pad(tissue, width)
        assert background_value(padded) == 0
        np.testing.assert_allclose(centre_and_spread(padded), centre_and_spread(tissue), rtol=1e-2)


def test_a_constant_volume_becomes_zero():
    assert not normalise(np.full((5, 6, 7), 41.0, np.float32), Normalisation()).any()
    assert not normalise(np.zeros((5, 6, 7), np.float32), Normalisation()).any()


def test_window_in_closed_form():
    values = np.array([-2000.0, -100.0, 0.0, 60.0, 4000.0], np.float32).reshape(5, 1, 1)
    window = Normalisation(kind="window", low=-100.0, high=200.0, centre=50.0, spread=25.0)
    assert normalise(values, window).ravel().tolist() == [-6.0, -6.0, -2.0, pytest.approx(0.4), 6.0]
    assert values[0] == -2000.0, "the input is not changed"


def test_prepared_intensities_are_exact_in_half_precision():
    image, _ = volumes()
    prepared = prepare(image, None, plan_for(spacing_mm=(2.0, 1.0, 1.0))).image
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared.astype(np.float16).astype(np.float32), prepared)
    exact = normalise(image.array[0], Normalisation())
    unresampled = restore(*_prepared_and_geometry(image), plan_for())[0]
    assert np.abs(unresampled - exact).max() < 0.002


def _prepared_and_geometry(image: Volume):
    prepared = prepare(image, None, plan_for())
    return prepared.image, prepared.geometry


@pytest.mark.parametrize(
    ("name", "spacing_mm"),
    [
        ("Task04_Hippocampus", (1.0, 1.0, 1.0)),
        ("ACDC", (None, 1.4, 1.4)),
        ("OASIS_Subcortical", (1.0, 1.0, 1.0)),
    ],
)
def test_real_volumes_come_to_one_scale_and_go_back(shared_data, name, spacing_mm):
    images = sorted((shared_data / name / "imagesTr").glob("*.nii.gz"))[10:16]
    assert len(images) > 4
    quartiles = []
    for path in images:
        image, label = read_image([path]), read_label(path.parent.parent / "labelsTr" / path.name)
        classes = 15 if name.startswith("OASIS") else 4
        plan = plan_for(
            dims=2 if spacing_mm[0] is None else 3,
            spacing_mm=spacing_mm,
            label_values=tuple(range(classes)),
            label_names=tuple(map(str, range(classes))),
        )
        prepared = prepare(image, label, plan)
        quartiles.append(np.percentile(prepared.image, (25, 50, 75)))
        back = restore_labels(one_hot(prepared.label, plan), prepared.geometry, plan)
        assert back.shape == image.shape
        if spacing_mm[0] is None:
            assert dice(back > 0, label.array[0] > 0) > 0.95
        else:
            np.testing.assert_array_equal(back, label.array[0])
    assert np.abs(np.array(quartiles) - np.median(quartiles, axis=0)).max() < 0.5
