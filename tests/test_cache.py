"""The cache: the same numbers with and without it, never stale, remade when damaged."""

import dataclasses
import math
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from handful.data import cache as module
from handful.data.cache import Cache, CacheWarning, fits_in_memory, load_all, resident_gb
from handful.data.cases import Case, Dataset
from handful.data.fingerprint import make_fingerprint
from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.errors import DataError, RunError

SHAPE = (70, 45, 40)


def save(path: Path, seed: int, *, label: bool = False) -> Path:
    affine = np.diag([-1.0, 1.2, 1.5, 1.0])
    affine[:3, 3] = 0.1, 1 / 3, -77.7
    rng = np.random.default_rng(seed)
    array = (
        rng.integers(0, 3, SHAPE).astype(np.uint8) if label else rng.normal(100, 20, SHAPE).astype(np.float32)
    )
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    return [
        Case(
            name=f"a/{index}",
            patient=str(index),
            images=(save(tmp_path / "images" / f"{index}.nii.gz", index),),
            label=save(tmp_path / "labels" / f"{index}.nii.gz", index, label=True),
        )
        for index in range(3)
    ]


@pytest.fixture
def plan() -> Plan:
    return Plan(
        dims=3,
        axes=(2, 1, 0),
        spacing_mm=(1.5, 1.0, 1.0),
        patch=(16, 16, 16),
        batch=2,
        channels=(Normalisation(),),
        label_values=(0, 1, 2),
        label_names=("background", "a", "b"),
        mirror=(False, False, False),
        network=NetworkPlan(widths=(8, 16), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3))),
    )


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Grows by one with every case that is really prepared."""
    prepare, calls = module.prepare, []

    def counted(*arguments, **options):
        calls.append(1)
        return prepare(*arguments, **options)

    monkeypatch.setattr(module, "prepare", counted)
    return calls


def assert_equal(found, expected) -> None:
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.image.dtype == np.float32
    if expected.label is None:
        assert found.label is None
    else:
        np.testing.assert_array_equal(found.label, expected.label)
        assert found.label.dtype == np.uint8
    np.testing.assert_array_equal(found.geometry.affine, expected.geometry.affine)
    for field in ("shape", "grid", "spacing_mm"):
        assert getattr(found.geometry, field) == getattr(expected.geometry, field)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_numbers_from_files_memory_and_parts(cases, plan, tmp_path, made, dims):
    plan = dataclasses.replace(plan, dims=dims)
    expected = Cache(None, plan).get(cases[0])
    assert expected.image.shape == (1, 40, 54, 70)
    cache = Cache(tmp_path / "cache", plan)
    assert_equal(cache.get(cases[0]), expected)
    assert_equal(cache.get(cases[0]), expected)
    assert_equal(Cache(tmp_path / "cache", plan).get(cases[0]), expected)
    assert len(made) == 2
    lazy = cache.open_lazy(cases[0])
    assert lazy.image.shape == expected.image.shape
    box = (slice(7, 35), slice(1, 54), slice(30, 66))
    np.testing.assert_array_equal(
        lazy.image[(slice(None), *box)].astype(np.float32), expected.image[(slice(None), *box)]
    )
    np.testing.assert_array_equal(lazy.label[box], expected.label[box])
    assert lazy.geometry.grid == expected.geometry.grid
    assert len(made) == 2


def test_no_part_that_matters_is_forgotten(cases, plan, tmp_path, made):
    cache = Cache(tmp_path / "cache", plan)
    cache.get(cases[0])
    unimportant = dataclasses.replace(
        plan, patch=(8, 8, 8), batch=7, mirror=(True, True, True), reasons={"a": "b"}
    )
    Cache(tmp_path / "cache", unimportant).get(cases[0])
    assert len(made) == 1
    changes = [
        {"axes": (2, 0, 1)},
        {"spacing_mm": (1.5, 1.0, 1.1)},
        {"channels": (Normalisation(kind="window", low=0.0, high=200.0),)},
        {"label_values": (0, 2, 1)},
        {"ignore_value": 9},
    ]
    for count, change in enumerate(changes, start=2):
        other = dataclasses.replace(plan, **change)
        assert_equal(Cache(tmp_path / "cache", other).get(cases[0]), Cache(None, other).get(cases[0]))
        assert len(made) == 2 * count - 1
    save(cases[0].images[0], 99)
    assert_equal(cache.get(cases[0]), Cache(None, plan).get(cases[0]))
    save(cases[0].label, 98, label=True)
    assert_equal(cache.get(cases[0]), Cache(None, plan).get(cases[0]))


def test_the_label_of_a_case_outside_the_budget_is_never_touched(cases, plan, tmp_path):
    cache = Cache(tmp_path / "cache", plan)
    cases[0].label.unlink()
    unlabelled = dataclasses.replace(cases[0], label=None)
    assert cache.get(unlabelled).label is None
    assert cache.open_lazy(unlabelled).label is None
    files = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(files) == 1
    assert files[0].endswith(".image.b2nd")
    # the label comes later, the image stays
    save(cases[0].label, 3, label=True)
    assert cache.get(cases[0]).label is not None
    assert cache.get(unlabelled).label is None
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign"])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_damaged_file_is_made_anew_with_a_warning(cases, plan, tmp_path, made, damage, kind):
    cache = Cache(tmp_path / "cache", plan)
    expected = cache.get(cases[0])
    (path,) = (tmp_path / "cache").glob(f"*.{kind}.b2nd")
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content = bytearray()
    elif damage == "short":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        for place in range(len(content) // 3, len(content) // 3 + 40):
            content[place] ^= 0xFF
    else:
        content = bytearray(b"not a file of ours" * 500)
    path.write_bytes(content)
    with pytest.warns(CacheWarning, match="damaged"):
        assert_equal(cache.get(cases[0]), expected)
    assert len(made) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(cache.get(cases[0]), expected)
    assert len(made) == 2


FEW_FILES = """
import pickle, resource, sys, warnings
from pathlib import Path
from handful.data.cache import Cache
from handful.errors import RunError
warnings.simplefilter("error")
cases, plan, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
cache, box = Cache(folder, plan), (slice(None), slice(3, 9), slice(1, 20), slice(5, 60))
first = cache.open_lazy(cases[0]).image[box]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
opened = [cache.open_lazy(case) for case in cases * 50]
assert len(opened) == 150
assert all((lazy.image[box] == first).all() for lazy in opened[::3])
taken = []
try:
    while True:
        taken.append(open("/dev/null"))
except OSError:
    pass
assert (opened[-3].image[box] == first).all(), "what is mapped needs no file"
for read in (cache.open_lazy, cache.get):
    try:
        read(cases[0])
    except RunError as error:
        assert "ulimit -n" in str(error), error
    else:
        raise AssertionError("a file was opened without a descriptor")
"""


def test_more_cases_than_files_may_be_open(cases, plan, tmp_path):
    for case in cases:
        Cache(tmp_path / "cache", plan).get(case)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    (tmp_path / "told").write_bytes(pickle.dumps((cases, plan, tmp_path / "cache")))
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, tmp_path / "told"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert after == before, "no file was taken for a damaged one"


@pytest.mark.parametrize("damage", ["empty", "short", "foreign"])
def test_a_damaged_file_is_not_mapped(cases, plan, tmp_path, made, damage):
    cache = Cache(tmp_path / "cache", plan)
    expected = cache.get(cases[0])
    (path,) = (tmp_path / "cache").glob("*.image.b2nd")
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "short": content[: len(content) // 2], "foreign": b"not ours" * 999}[damage]
    )
    with pytest.warns(CacheWarning, match="damaged"):
        lazy = cache.open_lazy(cases[0])
    np.testing.assert_array_equal(lazy.image[:].astype(np.float32), expected.image)
    assert len(made) == 2


def test_many_readers_and_writers_of_one_folder(cases, plan, tmp_path):
    expected = [Cache(None, plan).get(case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: Cache(tmp_path / "cache", plan).get(cases[i % 3]), range(24)))
    assert len(found) == 24
    for index, prepared in enumerate(found):
        assert_equal(prepared, expected[index % 3])
    assert len(list((tmp_path / "cache").iterdir())) == 6, "no temporary file is left"


def test_errors_name_the_case_or_the_file(cases, plan, tmp_path):
    image = nib.load(cases[0].images[0])
    label = np.asarray(nib.load(cases[0].label).dataobj).copy()
    label[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(label, image.affine), cases[0].label)
    with pytest.raises(DataError, match=r"case a/0 .*\[77\]"):
        Cache(tmp_path / "cache", plan).get(cases[0])
    gone = dataclasses.replace(cases[1], images=(tmp_path / "gone.nii.gz",))
    with pytest.raises(DataError, match=r"gone\.nii\.gz"):
        Cache(tmp_path / "cache", plan).get(gone)
    with pytest.raises(ValueError, match="without a folder"):
        Cache(None, plan).open_lazy(cases[1])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache", plan).get(cases[1])


def test_load_all_keeps_the_order_and_reports(cases, plan, tmp_path, made):
    seen = []
    mixed = [cases[2], dataclasses.replace(cases[0], label=None), cases[1]]
    for threads in (1, 3):
        loaded = load_all(
            mixed,
            plan,
            folder=tmp_path / "cache",
            threads=threads,
            progress=lambda done, of: seen.append((done, of)),
        )
        for case, prepared in zip(mixed, loaded, strict=True):
            assert_equal(prepared, Cache(None, plan).get(case))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    assert len(made) == 3 + 6
    assert len(load_all(mixed, plan)) == 3


def test_the_memory_estimate_is_what_the_arrays_take(cases, plan, tmp_path):
    dataset = Dataset(
        name="noise",
        root=tmp_path,
        layout="folders",
        cases=tuple(cases),
        label_names={0: "background", 1: "a", 2: "b"},
        channel_names=("MR",),
    )
    fingerprint = make_fingerprint(dataset, [], cases)
    taken = sum(4 * p.image.size + p.label.size for p in load_all(cases, plan)) / 1e9
    assert math.isclose(resident_gb(fingerprint, plan, bytes_each=4), taken)
    assert fits_in_memory(fingerprint, plan, memory_gb=taken)
    assert not fits_in_memory(fingerprint, plan, memory_gb=taken / 2)
