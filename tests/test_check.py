"""A zoo of bad inputs: each is found, named with its file and its remedy, and nothing but our own errors escapes."""

import contextlib
import gzip
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from conftest import RealData
from handful.data import nifti
from handful.data.check import check_dataset
from handful.data.discover import open_dataset
from handful.data.io import GeometryWarning, read_image, read_label
from handful.errors import HandfulError, UsageError
from volumes import AFFINE, dataset_json, image, label, nnunet, oblique, save


class Animal(NamedTuple):
    """One bad input: what is done to a sound data set, and what must be said about it."""

    name: str
    spoil: Callable[[Path], Path | None]
    severity: str
    file: str
    what: str


ZOO: list[Animal] = []


def animal(severity: str, file: str, what: str) -> Callable[[Callable[[Path], Path | None]], None]:
    """Add a bad input; the function spoils the data set at ``root`` and may return another path to open."""

    def add(spoil: Callable[[Path], Path | None]) -> None:
        ZOO.append(Animal(spoil.__name__, spoil, severity, file, what))

    return add


def img(root: Path, name: str = "c1") -> Path:
    return root / "imagesTr" / f"{name}_0000.nii.gz"


def lab(root: Path, name: str = "c1") -> Path:
    return root / "labelsTr" / f"{name}.nii.gz"


@animal("warning", "c1.nii.gz", "this label has no image")
def label_without_image(root: Path) -> None:
    img(root).unlink()


@animal("fatal", "c0.nii.gz", "this label has no image")
def no_label_fits_any_image(root: Path) -> None:
    for path in list((root / "labelsTr").iterdir()):
        path.rename(path.with_name(f"{path.name[:2]}.nii.gz"))
    for path in list((root / "imagesTr").iterdir()):
        path.rename(path.with_name(f"image{path.name}"))


@animal("fatal", "gone.nii.gz", "lists this file for training, but it does not exist")
def declared_label_is_missing(root: Path) -> None:
    training = [{"image": "imagesTr/c0_0000.nii.gz", "label": "labelsTr/gone.nii.gz"}]
    dataset_json(root, training=training, numTraining=1)


@animal("fatal", "gone.nii.gz", "lists this file for training, but it does not exist")
def declared_image_is_missing(root: Path) -> None:
    training = [{"image": "imagesTr/gone.nii.gz", "label": "labelsTr/c0.nii.gz"}]
    dataset_json(root, training=training, numTraining=1)


@animal("fatal", "c1.nii.gz", "not lie on the same grid: shape 7 x 6 x 4")
def label_of_another_shape(root: Path) -> None:
    save(img(root), image(1, (7, 6, 4)))
    save(lab(root), label(1))


@animal("fatal", "c1.nii.gz", "not lie on the same grid: orientation")
def label_mirrored(root: Path) -> None:
    save(lab(root), label(1), np.diag([-1.0, 1, 1, 1]) @ AFFINE)


@animal("fatal", "c1.nii.gz", "same grid: affines that place the same voxel up to 3 mm apart")
def label_shifted(root: Path) -> None:
    affine = AFFINE.copy()
    affine[2, 3] += 3
    save(lab(root), label(1), affine)


@animal("fatal", "c1.nii.gz", r"nobody declared: 9 \(1 voxels\)")
def undeclared_label_value(root: Path) -> None:
    array = label(1)
    array[3, 3, 3] = 9
    save(lab(root), array)


@animal("warning", "", r"no file holds the declared label 3 \('never'\)")
def declared_label_never_seen(root: Path) -> None:
    dataset_json(root, labels={"background": 0, "head": 1, "tail": 2, "never": 3})


@animal("fatal", "c1.nii.gz", "label values are not integers")
def interpolated_label(root: Path) -> None:
    save(lab(root), label(1) * np.float32(0.75))


@animal("fatal", "c1.nii.gz", "label values are not integers")
def label_with_nan(root: Path) -> None:
    array = label(1).astype(np.float32)
    array[0, 0, 1] = np.nan
    save(lab(root), array)


@animal("warning", "c1.nii.gz", "the label is all background")
def label_all_background(root: Path) -> None:
    save(lab(root), np.zeros_like(label()))


@animal("fatal", "c1.nii.gz", "the label is a copy of the image")
def label_is_the_image(root: Path) -> None:
    shutil.copy(img(root), lab(root))


@animal("fatal", "c1.nii.gz", "the label map has 2 channels")
def label_4d(root: Path) -> None:
    save(lab(root), np.stack([label(1), label(2)], -1))


@animal("fatal", "c1_0000.nii.gz", "1 of 210 voxels are NaN or infinite")
def image_with_nan(root: Path) -> None:
    array = image(1).astype(np.float32)
    array[2, 2, 2] = np.nan
    save(img(root), array)


@animal("fatal", "c1_0000.nii.gz", "1 of 210 voxels are NaN or infinite")
def image_beyond_float32(root: Path) -> None:
    array = image(1).astype(np.float64)
    array[2, 2, 2] = 1e200
    save(img(root), array)


@animal("fatal", "c1_0000.nii.gz", "NaN or infinite")
def scaled_to_infinity(root: Path) -> None:
    save(img(root), image(1).astype(np.float32), scl_slope=3e38, scl_inter=0.0)


@animal("fatal", "c1_0000.nii.gz", r"the image is empty \(all zero\)")
def image_empty(root: Path) -> None:
    save(img(root), np.zeros_like(image()))


@animal("fatal", "c1_0000.nii.gz", r"the image is constant \(all 7\)")
def image_constant(root: Path) -> None:
    save(img(root), np.full_like(image(), 7))


@animal("fatal", "c1_0000.nii.gz", "3 channel.s. or time point.s., 1 expected")
def image_4d(root: Path) -> None:
    save(img(root), np.stack([image(i) for i in range(3)], -1))


@animal("fatal", "c1_0000.nii.gz", "5-D")
def image_5d(root: Path) -> None:
    save(img(root), image(1, (7, 6, 5, 2, 3)))


@animal("fatal", "c1_0000.nii.gz", r"2-D \(7 x 6\)")
def image_2d(root: Path) -> None:
    save(img(root), image(1, (7, 6)))


@animal("fatal", "c1_0000.nii.gz", "colours")
def image_in_colours(root: Path) -> None:
    rgb = np.zeros((7, 6, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, AFFINE).to_filename(img(root))


@animal("fatal", "c1_0000.nii.gz", "complex numbers")
def image_complex(root: Path) -> None:
    save(img(root), image(1).astype(np.complex64))


@animal("warning", "c1_0000.nii.gz", "a unit sform was written over the real geometry")
def unit_sform(root: Path) -> None:
    for path, array in ((img(root), image(1)), (lab(root), label(1))):
        save(path, array, sform=np.diag([-1.0, 1, 1, 1]), qform_code=0)


@animal("fatal", "c1_0000.nii.gz", "which is right cannot be known")
def sform_against_pixdim(root: Path) -> None:
    save(img(root), image(1), pixdim=(0.6, 0.9, 2.5))


@animal("warning", "c1_0000.nii.gz", "neither sform nor qform")
def no_geometry(root: Path) -> None:
    for path, array in ((img(root), image(1)), (lab(root), label(1))):
        save(path, array, sform_code=0, qform_code=0)


@animal("fatal", "c1_0000.nii.gz", "the sform is not a geometry")
def singular_sform(root: Path) -> None:
    save(img(root), image(1), srow_y=(0, 0, 0, 0))


@animal("fatal", "c1_0000.nii.gz", "the sform is not a geometry")
def sform_of_nan(root: Path) -> None:
    save(img(root), image(1), srow_x=(np.nan, 0, 0, 0))


@animal("fatal", "c1_0000.nii.gz", "the spacing is 0 x 0.9 x 2.5 mm")
def zero_spacing(root: Path) -> None:
    save(img(root), image(1), pixdim=(0, 0.9, 2.5), sform_code=0, qform_code=0)


@animal("fatal", "c1_0000.nii.gz", "the spacing is -0.8 x 0.9 x 2.5 mm")
def negative_spacing(root: Path) -> None:
    save(img(root), image(1), pixdim=(-0.8, 0.9, 2.5), sform_code=0)


@animal("fatal", "c1_0000.nii.gz", "the qform is not a rotation")
def broken_qform(root: Path) -> None:
    save(img(root), image(1), quatern_b=3.0, sform_code=0)


@animal("warning", "c1_0000.nii.gz", "hardly that of a scan")
def absurd_spacing(root: Path) -> None:
    for path, array in ((img(root), image(1)), (lab(root), label(1))):
        save(path, array, AFFINE @ np.diag([1000.0, 1000, 1000, 1]))


@animal("warning", "c1_0000.nii.gz", "lengths in micrometres")
def micrometres(root: Path) -> None:
    save(img(root), image(1), xyzt_units=3)


@animal("warning", "c1_0000.nii.gz", "sform and qform place the volume differently")
def sform_against_qform(root: Path) -> None:
    save(img(root), image(1), qoffset_x=99.0)


@animal("warning", "c1_0000.nii.gz", "the volume is tiny")
def tiny_volume(root: Path) -> None:
    save(img(root), image(1, (7, 6, 2)))
    save(lab(root), label(1, (7, 6, 2)))


@animal("note", "", "volumes have left-handed axes")
def left_handed(root: Path) -> None:
    pass


@animal("note", "", "1 of 4 volumes are oblique")
def oblique_axes(root: Path) -> None:
    save(img(root), image(1), oblique())
    save(lab(root), label(1), oblique())


@animal("warning", "c2_0000.nii.gz", "same voxels as that of case c1")
def duplicate_image(root: Path) -> None:
    save(img(root, "c2"), image(1).astype(np.float32))
    lab(root, "c2").unlink()


@animal("fatal", "c2_0000.nii.gz", "same voxels as that of case c1 .* but their labels differ")
def duplicate_image_two_truths(root: Path) -> None:
    shutil.copy(img(root), img(root, "c2"))


@animal("fatal", "t_0000.nii.gz", "one of them trains, the other tests")
def duplicate_across_train_and_test(root: Path) -> None:
    save(root / "imagesTs" / "t_0000.nii.gz", image(1))
    save(root / "labelsTs" / "t.nii.gz", label(1))


@animal("fatal", "c1_0000.nii.gz", "patient P is in training .c1. and in test .t.")
def patient_in_two_splits(root: Path) -> None:
    save(root / "imagesTs" / "t_0000.nii.gz", image(9))
    save(root / "labelsTs" / "t.nii.gz", label(9))
    (root / "cases.csv").write_text("case,patient\nc0,A\nc1,P\nc2,B\nc3,C\nt,P\n")


@animal("warning", "u_0000.nii.gz", "patient P is in test .t.; this unlabelled image will not train")
def unlabelled_image_of_a_test_patient(root: Path) -> None:
    save(root / "imagesTs" / "t_0000.nii.gz", image(9))
    save(root / "labelsTs" / "t.nii.gz", label(9))
    save(root / "imagesUn" / "u_0000.nii.gz", image(10))
    (root / "cases.csv").write_text("case,patient\nc0,A\nc1,D\nc2,B\nc3,C\nt,P\nu,P\n")


@animal("fatal", "c1_0000.nii.gz", "cut off or damaged")
def truncated_gz(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (40, 30, 20)).astype(np.int16)
    save(img(root), noise)
    img(root).write_bytes(img(root).read_bytes()[:-5000])


@animal("fatal", "c1_0000.nii", "cut off or damaged")
def truncated_nii(root: Path) -> None:
    dataset_json(root, file_ending=None)
    img(root).unlink()
    save(root / "imagesTr" / "c1_0000.nii", image(1))
    path = root / "imagesTr" / "c1_0000.nii"
    path.write_bytes(path.read_bytes()[:-50])


@animal("fatal", "c1_0000.nii.gz", "cut off or damaged")
def flipped_bytes_in_gz(root: Path) -> None:
    data = bytearray(img(root).read_bytes())
    data[200:260] = b"\xff" * 60
    img(root).write_bytes(data)


@animal("fatal", "c1_0000.nii.gz", "the file is empty")
def empty_file(root: Path) -> None:
    img(root).write_bytes(b"")


@animal("fatal", "c1.nii.gz", "the file is empty")
def empty_label_file(root: Path) -> None:
    lab(root).write_bytes(b"")


@animal("fatal", "c1_0000.nii.gz", "is not gzip-compressed, against its name")
def not_gzip(root: Path) -> None:
    img(root).write_bytes(gzip.decompress(img(root).read_bytes()))


@animal("fatal", "c1_0000.nii.gz", "not a NIfTI file")
def text_in_disguise(root: Path) -> None:
    img(root).write_bytes(gzip.compress(b"<html>404 not found</html>" * 40))


@animal("fatal", "c1_0000.nii.gz", "impossible shape")
def impossible_shape(root: Path) -> None:
    save(img(root), image(1), dim=(3, 7, -6, 5, 1, 1, 1, 1))


@animal("fatal", "c1_0000.nii.gz", "the header claims 32000 x 32000 x 32000 voxels, the file holds fewer")
def gigantic_claim(root: Path) -> None:
    save(img(root), image(1), dim=(3, 32000, 32000, 32000, 1, 1, 1, 1))


@animal("fatal", "c1_0000.nii.gz", "unknown type 77")
def unknown_datatype(root: Path) -> None:
    save(img(root), image(1), datatype=77)


@animal("fatal", "c1_0000.mha", "damaged or not what its name says")
def broken_mha(root: Path) -> None:
    pytest.importorskip("SimpleITK")
    dataset_json(root, file_ending=None)
    img(root).unlink()
    (root / "imagesTr" / "c1_0000.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")


@animal("fatal", "c1_0001.nii.gz", "its grid differs from channel c1_0000.nii.gz")
def channels_disagree(root: Path) -> None:
    dataset_json(root, channel_names={"0": "T1", "1": "T2"})
    for i in range(4):
        save(root / "imagesTr" / f"c{i}_0001.nii.gz", image(i + 60), AFFINE if i != 1 else oblique())


@animal("fatal", "c1_0000.nii.gz", "case c1 has the files c1_0000.nii.gz; 2 channel.s. expected")
def channel_missing(root: Path) -> None:
    dataset_json(root, channel_names={"0": "T1", "1": "T2"})
    for i in (0, 2, 3):
        save(root / "imagesTr" / f"c{i}_0001.nii.gz", image(i + 60))


@animal("warning", "c1_0001.nii.gz", "one of its channels is empty")
def one_channel_empty(root: Path) -> None:
    dataset_json(root, channel_names={"0": "T1", "1": "T2"})
    for i in range(4):
        save(root / "imagesTr" / f"c{i}_0001.nii.gz", image(i + 60) * (i != 1))


@animal("fatal", "c1_0000.nii.gz", "2 cases are called c1")
def case_name_twice(root: Path) -> None:
    save(root / "imagesUn" / "c1_0000.nii.gz", image(9))


@animal("fatal", "c1_0000.nii.gz", "same name as c1_0000.nii, but for the ending")
def case_stored_twice(root: Path) -> None:
    dataset_json(root, file_ending=None)
    save(root / "imagesTr" / "c1_0000.nii", image(1))


@animal("warning", "C1_0000.nii.gz", "but for upper and lower case")
def case_names_clash_without_case(root: Path) -> None:
    save(root / "imagesUn" / "C1_0000.nii.gz", image(9))


@animal("warning", "scan.png", r"1 file\(s\) in imagesTr/ are not volumes")
def picture_among_volumes(root: Path) -> None:
    (root / "imagesTr" / "scan.png").write_bytes(b"\x89PNG")


@animal("warning", "c0_0000.nii.gz", "not Hounsfield units")
def ct_without_hounsfield_units(root: Path) -> None:
    dataset_json(root, channel_names={"0": "CT"})
    save(img(root, "c0"), image(0) + np.int16(500))


@animal("fatal", "dataset.json", "not valid JSON")
def json_broken(root: Path) -> None:
    (root / "dataset.json").write_text('{"labels": {"background": 0,}')


@animal("fatal", "dataset.json", "not valid JSON")
def json_in_latin1(root: Path) -> None:
    (root / "dataset.json").write_bytes('{"labels": {"Hüfte": 1}}'.encode("latin-1"))


@animal("fatal", "dataset.json", "a mapping in braces was expected")
def json_is_a_list(root: Path) -> None:
    (root / "dataset.json").write_text("[1, 2]")


@animal("fatal", "dataset.json", "'labels' is missing")
def json_without_labels(root: Path) -> None:
    dataset_json(root, labels=None)


@animal("fatal", "dataset.json", "the value 1 twice")
def json_label_value_twice(root: Path) -> None:
    dataset_json(root, labels={"background": 0, "head": 1, "tail": 1})


@animal("fatal", "dataset.json", "labels give '1' twice")
def json_label_key_twice(root: Path) -> None:
    (root / "dataset.json").write_text('{"labels": {"0": "background", "1": "head", "1": "tail"}}')


@animal("fatal", "dataset.json", "the name 'head' to two values")
def json_label_name_twice(root: Path) -> None:
    dataset_json(root, labels={"0": "background", "1": "head", "2": "head"})


@animal("fatal", "dataset.json", "regions")
def json_regions(root: Path) -> None:
    dataset_json(root, labels={"background": 0, "whole": [1, 2], "tail": 2})


@animal("fatal", "dataset.json", "labels cannot be read at 'head'")
def json_label_value_is_text(root: Path) -> None:
    dataset_json(root, labels={"background": 0, "head": "one"})


@animal("warning", "dataset.json", "labels name no value 0")
def json_without_background(root: Path) -> None:
    dataset_json(root, labels={"1": "head", "2": "tail"})


@animal("warning", "dataset.json", "value 0 is called 'head'")
def json_zero_is_a_structure(root: Path) -> None:
    dataset_json(root, labels={"0": "head", "1": "tail", "2": "foot"})


@animal("fatal", "dataset.json", "no structure besides the background")
def json_only_background(root: Path) -> None:
    dataset_json(root, labels={"background": 0})


@animal("warning", "dataset.json", "neither channel_names nor modality")
def json_without_channels(root: Path) -> None:
    dataset_json(root, channel_names=None)


@animal("fatal", "dataset.json", "channels are numbered 1, 3")
def json_channels_misnumbered(root: Path) -> None:
    dataset_json(root, channel_names={"1": "T1", "3": "T2"})


@animal("fatal", "dataset.json", "file_ending is '.png'")
def json_of_pictures(root: Path) -> None:
    dataset_json(root, file_ending=".png")


@animal("fatal", "dataset.json", "this entry cannot be read")
def json_entry_of_numbers(root: Path) -> None:
    dataset_json(root, training=[17])


@animal("fatal", "dataset.json", "'training' is not a list")
def json_training_is_text(root: Path) -> None:
    dataset_json(root, training="imagesTr")


@animal("warning", "dataset.json", "numTraining is 17")
def json_counts_wrong(root: Path) -> None:
    dataset_json(root, numTraining=17)


def manifest(root: Path, text: str) -> Path:
    path = root / "manifest.csv"
    path.write_text(text)
    return path


@animal("fatal", "manifest.csv", "the column 'image' is missing")
def csv_without_images(root: Path) -> Path:
    return manifest(root, "case,label\nc0,labelsTr/c0.nii.gz\n")


@animal("fatal", "c0_0000.nii.gz", "2 cases are called c0")
def csv_case_twice(root: Path) -> Path:
    row = "c0,imagesTr/c0_0000.nii.gz,labelsTr/c0.nii.gz\n"
    return manifest(root, "case,image,label\n" + row + row)


@animal("fatal", "gone.nii.gz", "line 2 lists this file, but it does not exist")
def csv_file_missing(root: Path) -> Path:
    return manifest(root, "case,image,label\nc0,gone.nii.gz,labelsTr/c0.nii.gz\n")


@animal("fatal", "manifest.csv", "line 2: the split is 'validate'")
def csv_unknown_split(root: Path) -> Path:
    return manifest(root, "case,image,split\nc0,imagesTr/c0_0000.nii.gz,validate\n")


@animal("fatal", "manifest.csv", "line 2 names no case")
def csv_case_without_name(root: Path) -> Path:
    return manifest(root, "case,image\n,imagesTr/c0_0000.nii.gz\n")


@animal("fatal", "manifest.csv", "line 2 has 3 cells, the head has 2")
def csv_too_many_cells(root: Path) -> Path:
    return manifest(root, "case,image\nc0,imagesTr/c0_0000.nii.gz,what\n")


@animal("fatal", "manifest.csv", "the file is empty")
def csv_empty(root: Path) -> Path:
    return manifest(root, "\n")


@animal("fatal", "c1_0000.nii.gz", "it is the image of two cases")
def csv_image_used_twice(root: Path) -> Path:
    return manifest(root, "case,image\na,imagesTr/c1_0000.nii.gz\nb,imagesTr/c1_0000.nii.gz\n")


@animal("fatal", "c1_0000.nii.gz", "cannot be a file name")
def csv_case_name_is_a_path(root: Path) -> Path:
    return manifest(root, "case,image\n../a,imagesTr/c1_0000.nii.gz\n")


@animal("fatal", "cases.csv", "case c0 is given two patients")
def two_patients_of_one_case(root: Path) -> None:
    (root / "cases.csv").write_text("case,patient\nc0,A\nc0,B\n")


@animal("warning", "cases.csv", "no columns 'case' and 'patient'")
def cases_without_patients(root: Path) -> None:
    (root / "cases.csv").write_text("case,age\nc0,7\n")


@animal("fatal", "empty", "the folder is empty")
def empty_folder(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


@animal("fatal", "nothing", "no such file or folder")
def no_folder(root: Path) -> Path:
    return root / "nothing"


@animal("fatal", "c1.nii.gz", "this is a file, not a data set")
def file_instead_of_folder(root: Path) -> Path:
    return lab(root)


@animal("fatal", "holder", "holds inner: name one of them")
def folder_of_data_sets(root: Path) -> Path:
    nnunet(root / "holder" / "inner")
    return root / "holder"


@animal("fatal", "hollow", "there is no case in it")
def folders_without_files(root: Path) -> Path:
    (root / "hollow" / "images").mkdir(parents=True)
    (root / "hollow" / "labels").mkdir()
    return root / "hollow"


@animal("warning", "bare", "no case has a label")
def no_labels_at_all(root: Path) -> Path:
    save(root / "bare" / "images" / "a.nii.gz", image())
    return root / "bare"


def test_the_zoo_is_large() -> None:
    assert len(ZOO) == len({a.name for a in ZOO}) == 97
    assert len(ZOO) >= 30


@pytest.mark.parametrize("bad", ZOO, ids=[a.name for a in ZOO])
def test_zoo(bad: Animal, tmp_path: Path) -> None:
    root = nnunet(tmp_path / "Dataset007_Zoo")
    path = bad.spoil(root) or root
    report = check_dataset(path, threads=2)
    matching = [
        problem
        for problem in report.problems
        if problem.severity == bad.severity and problem.file and problem.file.name.endswith(bad.file)
    ]
    found = [problem for problem in matching if re.search(bad.what, problem.what)]
    assert found, [str(problem) for problem in report.problems]
    assert str(found[0]).startswith(str(found[0].file))
    if bad.severity != "note":
        assert len(found[0].remedy) > 5
        assert found[0].remedy in str(found[0])
    assert json.loads(json.dumps(report.as_dict()))["fatal"] == report.fatal
    assert report.fatal == (bad.severity == "fatal"), [str(problem) for problem in report.problems]

    # what check calls fatal must not get past those who only open and read; nothing but our own errors may come
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        with contextlib.nullcontext() if not report.fatal else contextlib.suppress(HandfulError):
            for case in open_dataset(path).cases:
                read_image(case.images)
                if case.label:
                    read_label(case.label)


def test_a_sound_data_set_has_no_fatal_problem_and_is_summed_up(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = check_dataset(nnunet(tmp_path), progress=lambda done, total: steps.append((done, total)))
    assert {problem.severity for problem in report.problems} == {"note"}
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    found: dict[str, Any] = dict(report.found)
    assert (found["cases"], found["labelled"], found["unlabelled"], found["held_out"]) == (4, 4, 0, 0)
    assert found["shape"]["median"] == [7, 6, 5]
    assert found["spacing_mm"]["max"] == pytest.approx([0.8, 0.9, 2.5], abs=1e-5)
    assert found["orientations"] == {"LAS": 4}
    counts = [sum(int((label(i) == value).sum()) for i in range(4)) for value in range(3)]
    assert [entry["voxels"] for entry in found["labels"]] == counts
    assert [entry["name"] for entry in found["labels"]] == ["background", "head", "tail"]


def test_every_problem_of_a_data_set_is_reported_in_one_go(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    save(img(root, "c2"), np.zeros_like(image()))
    lab(root, "c0").write_bytes(b"")
    (root / "imagesTr" / "scan.png").write_bytes(b"")
    report = check_dataset(root)
    assert [problem.severity for problem in report.problems] == sorted(
        (problem.severity for problem in report.problems), key=["fatal", "warning", "note"].index
    )
    assert sum(problem.severity == "fatal" for problem in report.problems) == 2
    assert {problem.case for problem in report.problems} >= {"c0", "c2"}


def test_plain_folders_report_the_values_they_hold(tmp_path: Path) -> None:
    save(tmp_path / "images" / "s.nii.gz", image())
    save(
        tmp_path / "labels" / "s.nii.gz",
        np.where(label() == 2, -7, label().astype(np.int16)).astype(np.int16),
    )
    found = check_dataset(tmp_path).found
    assert [(entry["value"], entry["name"]) for entry in found["labels"]] == [
        (0, "background"),
        (-7, "-7"),
        (1, "1"),
    ]


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nifti, "open", refuse, raising=False)  # chmod would not stop the superuser
    problems = [p for p in check_dataset(nnunet(tmp_path)).problems if p.severity == "fatal"]
    assert len(problems) == 8
    assert all("permission denied" in p.what and "chmod" in p.remedy for p in problems)


def test_no_header_however_damaged_raises_anything_but_our_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    path = save(tmp_path / "a.nii", image())
    good = path.read_bytes()
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        start, length = rng.integers(0, 348), rng.integers(1, 9)
        data[start : start + length] = rng.bytes(int(length))
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeometryWarning)
            try:
                assert read_image([path]).array.shape[0] == 1
            except HandfulError as error:
                refused += str(path) in str(error)
    assert refused > 60


def test_a_wrong_pattern_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        check_dataset(nnunet(tmp_path), patients="(")


def test_real_data_sets_are_sound(shared_data: RealData) -> None:
    expected = {"OASIS_Subcortical": (15, 15, {"LAS": 15})}
    for name, (cases, patients, orientations) in expected.items():
        report = check_dataset(shared_data / name)
        assert not report.fatal
        assert not [p for p in report.problems if p.severity == "warning"]
        assert report.found["cases"] == cases
        assert report.found["patients"] == patients
        assert report.found["orientations"] == orientations


def test_real_orphans(shared_data: RealData) -> None:
    report = check_dataset(shared_data / "quirks/hippocampus_orphans")
    orphans = [p.file.name for p in report.problems if "this label has no image" in p.what and p.file]
    assert orphans == ["hippocampus_010.nii.gz", "hippocampus_281.nii.gz"]
    assert report.fatal
