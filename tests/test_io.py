"""Reading and writing volumes: geometry bit for bit, formats that agree, damaged files in words."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import RealData
from handful.data import io
from handful.data.nifti import read_nifti_header
from handful.data.volume import Grid, Volume, grid_difference
from handful.errors import DataError, UsageError
from volumes import AFFINE, SHAPE, image, label, oblique, rewrite_header, save

NAMES = {0: "background", 1: "Kammer <links>", 2: "Vorhof"}
GEOMETRY = (
    "srow_x",
    "srow_y",
    "srow_z",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)
GEOMETRY += ("qform_code", "sform_code", "xyzt_units")


def raw_header(path: Path) -> nib.Nifti1Header:
    data = path.read_bytes()
    return nib.Nifti1Header((gzip.decompress(data) if path.name.endswith("gz") else data)[:348], check=False)


def test_an_image_is_what_was_written(tmp_path: Path) -> None:
    volume = io.read_image([save(tmp_path / "a.nii.gz", image())])
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (1, *SHAPE)
    np.testing.assert_array_equal(volume.array[0], image())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, (0.8, 0.9, 2.5), atol=1e-6)
    assert volume.shape == SHAPE
    assert volume.orientation == "LAS"
    assert volume.grid.left_handed


def test_scaling_in_the_header_is_applied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", image(), scl_slope=0.5, scl_inter=-3.0)
    np.testing.assert_array_equal(io.read_image([path]).array[0], image() * 0.5 - 3)


def test_channels_are_stacked_in_order(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"a_{i:04d}.nii.gz", image(i)) for i in range(3)]
    array = io.read_image(paths).array
    np.testing.assert_array_equal(array, np.stack([image(i) for i in range(3)]))


def test_a_4d_file_repeated_is_its_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.stack([image(0), image(1)], axis=-1))
    np.testing.assert_array_equal(io.read_image([path, path]).array, np.stack([image(0), image(1)]))
    with pytest.raises(DataError, match=r"a\.nii\.gz: the file holds 2 channel"):
        io.read_image([path])


def test_trailing_single_axes_are_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", image()[..., None])
    assert io.read_image([path]).shape == SHAPE
    assert io.read_label(save(tmp_path / "b.nii.gz", label()[..., None, None])).array.shape == (1, *SHAPE)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    other = AFFINE.copy()
    other[0, 3] += 4
    paths = [save(tmp_path / "a_0000.nii.gz", image()), save(tmp_path / "a_0001.nii.gz", image(), other)]
    with pytest.raises(DataError, match=r"a_0001.nii.gz.*4 mm apart"):
        io.read_image(paths)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 255), np.uint8),
        ((-1, 3), np.int8),
        ((0, 256), np.int16),
        ((0, 40000), np.uint16),
        ((-1, 70000), np.int32),
    ],
)
def test_labels_take_the_smallest_type(tmp_path: Path, values: tuple[int, int], kind: type) -> None:
    array = np.full(SHAPE, values[0], np.int32)
    array[2, 3, 1] = values[1]
    read = io.read_label(save(tmp_path / "l.nii.gz", array)).array
    assert read.dtype == kind
    np.testing.assert_array_equal(read[0], array)
    as_float = io.read_label(save(tmp_path / "f.nii.gz", array.astype(np.float32))).array
    assert as_float.dtype == kind
    np.testing.assert_array_equal(as_float, read)


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf, 1.01])
def test_labels_that_are_no_integers_are_refused(tmp_path: Path, bad: float) -> None:
    array = label().astype(np.float32)
    array[1, 2, 3] = bad
    with pytest.raises(DataError, match=r"l\.nii: 1 label values are not integers"):
        io.read_label(save(tmp_path / "l.nii", array))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_images_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    array = image().astype(np.float64)
    array[1, 2, 3] = bad
    with pytest.raises(DataError, match="1 voxels are NaN or infinite"):
        io.read_image([save(tmp_path / "a.nii", array)])


@pytest.mark.parametrize(
    "affine", [AFFINE, oblique(), oblique(flip=True)], ids=["LAS", "oblique", "oblique left-handed"]
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_written_labels_keep_the_grid_bit_for_bit(tmp_path: Path, affine: np.ndarray, ending: str) -> None:
    like = save(tmp_path / "like.nii.gz", image(), affine)
    rewrite_header(like, {"qform_code": 2, "sform_code": 3, "xyzt_units": 10})
    out = tmp_path / "out" / f"case{ending}"
    io.write_label(out, label(), like=like, label_names=NAMES)

    written, source = raw_header(out), raw_header(like)
    for name in GEOMETRY:
        assert written[name].tobytes() == source[name].tobytes(), name
    assert written["pixdim"][:4].tobytes() == source["pixdim"][:4].tobytes()
    assert written.get_data_dtype() == np.uint8
    read = io.read_label(out)
    np.testing.assert_array_equal(read.array[0], label())
    np.testing.assert_array_equal(read.affine, io.read_geometry(like).affine)
    np.testing.assert_array_equal(nib.load(out).affine, nib.load(like).affine)
    assert io.read_label_names(out) == NAMES


@settings(max_examples=25, deadline=None)
@given(st.integers(-40000, 70000), st.integers(-40000, 70000))
def test_any_label_values_come_back(tmp_path_factory: pytest.TempPathFactory, low: int, high: int) -> None:
    folder = tmp_path_factory.mktemp("labels")
    like = save(folder / "like.nii", image())
    array = np.full(SHAPE, low, np.int64)
    array[0, 1, 2] = high
    io.write_label(folder / "l.nii", array, like=like, label_names={})
    np.testing.assert_array_equal(io.read_label(folder / "l.nii").array[0], array)


def test_a_contradictory_header_is_copied_as_it_is(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", image(), sform=np.diag([-1.0, 1, 1, 1]), qform_code=0)
    io.write_label(tmp_path / "out.nii.gz", label(), like=like, label_names=NAMES)
    for name in (*GEOMETRY, "pixdim"):
        assert raw_header(tmp_path / "out.nii.gz")[name].tobytes() == raw_header(like)[name].tobytes()


def test_big_endian_and_nifti2_sources(tmp_path: Path) -> None:
    big = nib.Nifti1Image(image(), oblique(), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii.gz")
    nib.save(nib.Nifti2Image(image(), oblique()), tmp_path / "two.nii.gz")
    for name in ("big", "two"):
        like = tmp_path / f"{name}.nii.gz"
        np.testing.assert_array_equal(io.read_image([like]).array[0], image())
        io.write_label(tmp_path / f"{name}_out.nii.gz", label(), like=like, label_names=NAMES)
        out = nib.load(tmp_path / f"{name}_out.nii.gz")
        np.testing.assert_array_equal(out.affine, nib.load(like).affine)
        np.testing.assert_array_equal(np.asarray(out.dataobj), label())
        assert io.read_label_names(tmp_path / f"{name}_out.nii.gz") == NAMES


def test_float_maps_come_back_channels_first(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", image(), oblique())
    array = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
    io.write_float(tmp_path / "p.nii.gz", array, like=like)
    path = tmp_path / "p.nii.gz"
    read = io.read_image([path] * 3)
    np.testing.assert_array_equal(read.array, array)
    np.testing.assert_array_equal(read.affine, io.read_image([like]).affine)
    io.write_float(path, array[0], like=like)
    np.testing.assert_array_equal(io.read_image([path]).array[0], array[0])


def test_the_same_label_gives_the_same_bytes(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", image())
    for name in ("a", "b"):
        io.write_label(tmp_path / f"{name}.nii.gz", label(), like=like, label_names=NAMES)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_text_about_the_patient_is_not_copied(tmp_path: Path) -> None:
    like = save(
        tmp_path / "like.nii.gz", image(), descrip=b"Jane Doe", aux_file=b"Jane Doe", db_name=b"Jane Doe"
    )
    io.write_label(tmp_path / "out.nii.gz", label(), like=like, label_names=NAMES)
    assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


def test_wrong_writes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", image())
    with pytest.raises(DataError, match="must be the same grid"):
        io.write_label(tmp_path / "o.nii.gz", label()[1:], like=like, label_names=NAMES)
    with pytest.raises(UsageError, match="label maps are integers"):
        io.write_label(tmp_path / "o.nii.gz", label().astype(float), like=like, label_names=NAMES)
    with pytest.raises(UsageError, match=r"ends in \.nii\.gz"):
        io.write_label(tmp_path / "o.nrrd", label(), like=like, label_names=NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["like.nii.gz"]


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".mhd", ".nhdr"])
@pytest.mark.parametrize(
    "affine", [AFFINE, oblique(), oblique(flip=True)], ids=["LAS", "oblique", "left-handed"]
)
def test_other_formats_agree_with_nifti(tmp_path: Path, ending: str, affine: np.ndarray) -> None:
    sitk = pytest.importorskip("SimpleITK")
    nifti = save(tmp_path / "a.nii.gz", image(), affine)
    other = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(other))
    first, second = io.read_image([nifti]), io.read_image([other])
    np.testing.assert_array_equal(second.array, first.array)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-5)
    assert not grid_difference(io.read_geometry(nifti), io.read_geometry(other))

    io.write_label(tmp_path / "out.nii.gz", label(), like=other, label_names=NAMES)
    written = io.read_label(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(written.array[0], label())
    np.testing.assert_allclose(written.affine, first.affine, atol=1e-5)


def test_vector_pixels_are_channels(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    channels = [image(i) for i in range(3)]
    parts = [sitk.GetImageFromArray(channel.transpose(2, 1, 0)) for channel in channels]
    path = tmp_path / "rgb.mha"
    sitk.WriteImage(sitk.Compose(parts), str(path))
    np.testing.assert_array_equal(io.read_image([path] * 3).array, np.stack(channels))
    with pytest.raises(DataError, match="3 channel"):
        io.read_label(path)


def test_without_simpleitk_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    (tmp_path / "a.mha").write_bytes(b"x")
    with pytest.raises(DataError, match=r'pip install "handful\[formats\]"'):
        io.read_image([tmp_path / "a.mha"])


def test_what_a_careful_reader_does_with_contradictory_headers(tmp_path: Path) -> None:
    unit = np.diag([-1.0, 1.0, 1.0, 1.0])
    spacing = (0.8, 0.9, 2.5)

    def spacing_of(**header: object) -> tuple[float, ...]:
        path = save(tmp_path / "a.nii.gz", image(), **header)
        with pytest.warns(io.GeometryWarning, match=r"a\.nii\.gz: .*(pixdim|sform|qform|milli)"):
            grid = io.read_geometry(path)
        with pytest.warns(io.GeometryWarning):
            assert not grid_difference(io.read_image([path]).grid, grid)
        return grid.spacing_mm

    np.testing.assert_allclose(spacing_of(sform=unit, qform_code=0), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(sform=unit, qform_code=1), spacing, atol=1e-5)  # the qform is whole
    np.testing.assert_allclose(spacing_of(pixdim=(1, 1, 1), qform_code=0), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(pixdim=(0, -1, np.nan), qform_code=0), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(sform_code=4, pixdim=(0.7, 0.8, 2.2)), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(sform_code=0, qform_code=0), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(xyzt_units=3), spacing, atol=1e-5)
    np.testing.assert_allclose(spacing_of(qoffset_x=70.0), spacing, atol=1e-5)
    path = save(tmp_path / "b.nii.gz", image(), pixdim=(0.7, 0.8, 2.2))
    with pytest.raises(DataError, match="which is right cannot be known"):
        io.read_geometry(path)
    path = save(
        tmp_path / "c.nii.gz", image(), sform_code=0
    )  # qform alone is a full geometry: nothing to say
    np.testing.assert_allclose(io.read_geometry(path).affine, AFFINE, atol=1e-5)


def test_the_original_acdc_header(shared_data: RealData) -> None:
    folder = shared_data / "quirks/acdc_original_header"
    with pytest.warns(io.GeometryWarning, match="a unit sform was written over the real geometry"):
        volume = io.read_image([folder / "patient001_frame01.nii.gz"])
    np.testing.assert_allclose(volume.spacing_mm, (1.5625, 1.5625, 10))
    assert volume.orientation == "LPS"
    with pytest.warns(io.GeometryWarning):
        truth = io.read_label(folder / "patient001_frame01_gt.nii.gz")
    assert not grid_difference(volume.grid, truth.grid)


def test_real_headers_have_nothing_to_remark(shared_data: RealData) -> None:
    files = [
        f
        for name in ("ACDC", "OASIS_Subcortical")
        for f in sorted((shared_data / name / "imagesTr").iterdir())[:10]
    ]
    assert len(files) == 20
    for file in files:
        found = read_nifti_header(file)
        assert not found.remarks
        np.testing.assert_array_equal(found.grid.affine, nib.load(file).affine)


def test_grids_differ_in_words() -> None:
    grid = Grid(SHAPE, AFFINE)
    assert grid_difference(grid, Volume(image()[None], AFFINE + 1e-6).grid) == ""
    assert grid_difference(grid, Grid((7, 6, 4), AFFINE)) == "shape 7 x 6 x 5 against 7 x 6 x 4"
    assert "spacing" in grid_difference(grid, Grid(SHAPE, AFFINE @ np.diag([2.0, 1, 1, 1])))
    assert "orientation LAS against RAS" in grid_difference(
        grid, Grid(SHAPE, np.diag([-1.0, 1, 1, 1]) @ AFFINE)
    )
    assert Grid(SHAPE, oblique()).tilt_degrees > 10
    assert Grid(SHAPE, AFFINE).tilt_degrees == pytest.approx(0, abs=1e-5)
    assert not Grid(SHAPE, oblique()).left_handed
    assert Grid(SHAPE, oblique(flip=True)).left_handed


def test_names_with_and_without_endings() -> None:
    assert io.stem_of(Path("x/la_003.nii.gz")) == "la_003"
    assert io.stem_of(Path("a.b.NII.GZ")) == "a.b"
    assert io.suffix_of(Path("a.Nrrd")) == ".nrrd"
    assert io.suffix_of(Path("a.png")) == ""
