"""The plan: what is decided, why, and how an edited file is judged."""

import dataclasses
import math

import numpy as np
import pytest

from handful.data.cases import Case, Dataset
from handful.data.fingerprint import (
    CaseFingerprint,
    ClassFingerprint,
    Fingerprint,
    PieceCount,
    make_fingerprint,
)
from handful.data.intensity import describe
from handful.data.mirror import mirror_axes
from handful.data.plan import TURNED, Normalisation, explain, make_plan, read_plan, write_plan
from handful.data.sizes import BUDGETS, SMALLEST_MAP, choose_sizes, plan_levels, unit
from handful.errors import DataError, UsageError

RNG = np.random.default_rng(0)
NOTHING = describe(np.zeros(0))


def dataset(*, names=("organ",), channels=("MR",), ignore=None) -> Dataset:
    labels = {0: "background", **dict(enumerate(names, start=1))}
    return Dataset(
        name="made up",
        root=".",
        layout="folders",
        cases=(),
        label_names=labels,
        channel_names=channels,
        ignore_value=ignore,
    )


def fingerprint(
    *,
    shape=(90, 110, 60),
    spacing=(1.0, 1.0, 1.2),
    cases=6,
    places=None,
    channels=("MR",),
    foreground=NOTHING,
    whole=(),
) -> Fingerprint:
    """``places``: per patient, per class value, the centroid along R, A, S; ``whole``: per class, in how many of 3."""
    body = describe(RNG.normal(20, 100, 50_000))
    classes = [
        ClassFingerprint(
            case=f"c{index}",
            patient=f"p{patient}",
            value=value,
            voxels=9,
            volume_ml=1.0,
            centroid=tuple(centroid),
            low=(0, 0, 0),
            high=(1, 1, 1),
            largest_piece=1.0,
            channels=(NOTHING,),
        )
        for index, (patient, structures) in enumerate(places or [])
        for value, centroid in structures.items()
    ]
    return Fingerprint(
        dataset="made up",
        channel_names=channels,
        labelled=tuple(sorted({entry.case for entry in classes})),
        cases=tuple(
            CaseFingerprint(
                case=f"c{index}",
                patient=f"p{index}",
                shape=shape,
                spacing_mm=spacing,
                orientation="RAS",
                channels=(NOTHING,) * len(channels),
                background=(0.0,) * len(channels),
            )
            for index in range(cases)
        ),
        classes=tuple(classes),
        pieces=tuple(
            PieceCount(value=value, cases=3, patients=3, whole=n)
            for value, n in [*enumerate(whole, start=1), (None, 3)]
        )
        if whole
        else (PieceCount(value=None, cases=0, patients=0, whole=0),),
        foreground=(foreground,) * len(channels),
        body=(body,) * len(channels),
    )


@pytest.mark.parametrize(
    ("shape", "spacing", "dims", "axes", "target"),
    [
        ((200, 180, 12), (1.4, 1.5, 8.0), 2, (2, 1, 0), (None, 1.5, 1.4)),
        ((14, 200, 180), (9.0, 0.8, 0.7), 2, (0, 2, 1), (None, 0.7, 0.8)),
        ((35, 50, 36), (1.0, 1.0, 1.0), 3, (2, 1, 0), (1.0, 1.0, 1.0)),
        ((160, 30, 170), (1.0, 2.5, 1.0), 3, (1, 2, 0), (2.5, 1.0, 1.0)),
        ((160, 170, 5), (1.0, 1.0, 1.0), 2, (2, 1, 0), (None, 1.0, 1.0)),
    ],
)
def test_grid_follows_the_spacing(shape, spacing, dims, axes, target):
    plan = make_plan(fingerprint(shape=shape, spacing=spacing), dataset(), device="cuda")
    assert (plan.dims, plan.axes, plan.spacing_mm) == (dims, axes, target)
    assert len(plan.patch) == len(plan.mirror) == dims


@pytest.mark.parametrize(
    ("spacing", "cpu"),
    [
        ((1.0, 1.0, 1.0), (2, 3)),
        ((1.0, 1.0, 1.05), (2, 3)),
        ((1.0, 1.0, 1.5), (3, 1)),
        ((1.0, 1.0, 4.0), (2, 1)),
    ],
)
def test_a_cpu_cuts_slices_along_all_axes_where_a_gpu_takes_volumes(spacing, cpu):
    seen = fingerprint(shape=(60, 70, 50), spacing=spacing)
    plans = [make_plan(seen, dataset(), device=device) for device in ("cpu", "cuda:1", "mps")]
    assert (plans[0].dims, len(plans[0].planes)) == cpu
    thick = spacing[2] > 3
    assert all((plan.dims, len(plan.planes)) == (2 if thick else 3, 1) for plan in plans[1:])


def test_slices_of_one_axis_may_lie_turned():
    coarse = fingerprint(shape=(100, 100, 12), spacing=(1.5, 1.5, 10.0))
    equal = fingerprint(shape=(60, 60, 60), spacing=(1.0, 1.0, 1.0))
    assert make_plan(coarse, dataset()).turned == TURNED > 0
    assert make_plan(equal, dataset(), planes=1, dims=2).turned == TURNED
    assert make_plan(equal, dataset()).turned == 0, "slices along every axis"
    assert make_plan(coarse, dataset(), dims=3).turned == 0


def test_dims_can_be_asked_for():
    thick = fingerprint(shape=(200, 180, 12), spacing=(1.4, 1.4, 8.0))
    plan = make_plan(thick, dataset(), dims=3)
    assert plan.dims == 3
    assert plan.spacing_mm == (8.0, 1.4, 1.4)
    assert plan.reasons["dims"].startswith("Asked for. The data suggest otherwise")
    # slices are too far apart to convolve or pool along, until the plane is as coarse
    assert plan.network.kernels[0] == (1, 3, 3)
    assert plan.network.strides[0] == (1, 2, 2)
    assert make_plan(fingerprint(), dataset(), dims=2).spacing_mm[0] is None
    assert make_plan(fingerprint(spacing=(1.0, 1.0, 1.0)), dataset(), dims=3).dims == 3
    with pytest.raises(UsageError, match="2 or 3"):
        make_plan(thick, dataset(), dims=4)


def test_sizes_keep_their_laws_on_any_volume():
    rng = np.random.default_rng(4)
    count = 0
    for device, dims in BUDGETS:
        budget = BUDGETS[device, dims]
        for _ in range(60):
            size = [int(n) for n in np.exp(rng.uniform(np.log(4), np.log(600), dims))]
            spacing = [float(s) for s in np.exp(rng.uniform(np.log(0.4), np.log(6), dims))]
            found = choose_sizes(size, spacing, channels=1, classes=4, budget=budget)
            steps = unit(found.strides, dims)
            levels = len(found.widths)
            assert levels == len(found.kernels) == len(found.strides) + 1 <= budget.levels
            assert max(found.widths) <= budget.widest
            assert math.prod(found.patch) <= budget.patch_voxels
            assert 2 <= found.batch <= budget.batch
            assert found.memory_gb <= budget.memory_gb
            for n, step, whole in zip(found.patch, steps, size):
                assert n % step == 0
                assert step == 1 or n // step >= SMALLEST_MAP
                assert n <= max(whole, 2 * SMALLEST_MAP) + step
            count += 1
    assert count == 240


def test_levels_by_hand():
    strides, kernels = plan_levels((40, 56, 40), (1.0, 1.0, 1.0), levels=6)
    assert strides == ((2, 2, 2),) * 3
    assert kernels == ((3, 3, 3),) * 4
    strides, kernels = plan_levels((20, 256, 224), (5.0, 1.0, 1.0), levels=6)
    assert strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_less_memory_means_a_smaller_step():
    sizes = [
        choose_sizes(
            (300, 400, 350), (1.0, 0.8, 0.8), channels=1, classes=3, budget=BUDGETS["gpu", 3], memory_gb=gb
        )
        for gb in (3.0, 6.0, 10.0, 20.0)
    ]
    steps = [found.batch * math.prod(found.patch) for found in sizes]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    assert all(found.memory_gb <= gb for found, gb in zip(sizes, (3.0, 6.0, 10.0, 20.0)))
    assert choose_sizes(
        (300, 400), (1.0, 0.8), channels=1, classes=3, budget=BUDGETS["cpu", 2], memory_gb=0.1
    ).patch < (64, 64)


def test_a_gpu_gets_a_wider_network():
    cpu, gpu = (make_plan(fingerprint(), dataset(), device=device) for device in ("cpu", "cuda:1"))
    assert cpu.network.widths[0] < gpu.network.widths[0]
    assert math.prod(cpu.patch) < math.prod(gpu.patch)


def test_the_width_can_be_asked_for():
    usual, narrow = make_plan(fingerprint(), dataset()), make_plan(fingerprint(), dataset(), width=8)
    assert narrow.network.widths == tuple(8 * 2**level for level in range(len(narrow.network.widths)))
    assert (narrow.patch, narrow.network.strides) == (usual.patch, usual.network.strides)
    assert "8 channels were asked for" in narrow.reasons["network"]
    with pytest.raises(UsageError, match="at least 1 channel"):
        make_plan(fingerprint(), dataset(), width=0)


def test_ct_is_windowed_by_the_budgets_foreground_or_the_body():
    data = dataset(channels=("CT", "MR T1"))
    foreground = describe(RNG.normal(100, 20, 20_000))
    rich = make_plan(fingerprint(channels=("CT", "MR T1"), foreground=foreground), data)
    assert [channel.kind for channel in rich.channels] == ["window", "zscore"]
    window = rich.channels[0]
    assert (window.low, window.high) == pytest.approx(
        (foreground.percentiles[0], foreground.percentiles[-1]), abs=1e-3
    )
    assert (window.centre, window.spread) == pytest.approx((foreground.mean, foreground.sd), abs=1e-3)
    few = describe(RNG.normal(100, 20, 200))
    poor = fingerprint(channels=("CT", "MR T1"), foreground=few)
    plan = make_plan(poor, data)
    assert plan.channels[0].low == pytest.approx(poor.body[0].percentiles[0], abs=1e-3)
    assert "200 labelled foreground voxels are too few" in plan.reasons["channels"]
    for name in ("CBCT", "ADC", "T2-contrast", "factor"):
        assert (
            make_plan(fingerprint(channels=(name,)), dataset(channels=(name,))).channels[0].kind == "zscore"
        )


def allowed(names, places=None, **keywords) -> tuple[bool, ...]:
    labels = {0: "background", **dict(enumerate(names, start=1))}
    return tuple(decision.allowed for decision in mirror_axes(fingerprint(places=places, **keywords), labels))


def symmetric(patients: int) -> list:
    signs = [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)]
    return [
        (
            patient,
            {1: [0.5 + 0.2 * s for s in signs[patient % 4]], 2: [0.5 - 0.1 * s for s in signs[patient % 4]]},
        )
        for patient in range(patients)
    ]


def test_mirroring_is_closed_by_names():
    assert allowed(["core", "edema"], symmetric(4)) == (True, True, True)
    for names, axis in [
        (["left kidney", "right kidney"], 0),
        (["KidneyLeft", "tumour"], 0),
        (["kidney_l", "kidney_r"], 0),
        (["Anterior", "Posterior"], 1),
        (["upper_lobe", "x"], 2),
        (["vertebrae_L1", "vertebrae_L2"], 2),
        (["T12", "L1"], 2),
    ]:
        expected = tuple(index != axis for index in range(3))
        assert allowed(names, symmetric(4)) == expected, names
    # a lone letter is no side, nor is a word that only contains one
    assert allowed(["lesion_l", "brightness"], symmetric(4)) == (True, True, True)


def test_mirroring_is_closed_by_positions():
    sided = [(p, {1: (0.7 + 0.02 * (p % 3), y[1][1], y[1][2])}) for p, y in symmetric(4)]
    assert allowed(["liver"], sided) == (False, True, True)
    ordered = [(p, {1: y[1], 2: (y[1][0], y[1][1] + 0.2, y[1][2])}) for p, y in symmetric(4)]
    assert allowed(["a", "b"], ordered) == (True, False, True)
    concentric = [(p, {1: y[1], 2: tuple(c + 0.005 for c in y[1])}) for p, y in symmetric(4)]
    assert allowed(["core", "rim"], concentric) == (True, True, True)


def test_one_patient_shows_no_symmetry():
    assert allowed(["core", "edema"]) == (False, False, False)
    assert allowed(["core", "edema"], symmetric(1)) == (False, False, False)
    frames = [(0, structures) for _, structures in symmetric(4)]
    assert allowed(["core", "edema"], frames) == (False, False, False)


def test_classes_are_the_data_sets_without_the_ignored():
    data = dataclasses.replace(dataset(), label_names={9: "ignore", 7: "b", 2: "a"}, ignore_value=9)
    plan = make_plan(fingerprint(), data)
    assert (plan.label_values, plan.label_names, plan.ignore_value) == (
        (0, 2, 7),
        ("background", "a", "b"),
        9,
    )
    with pytest.raises(UsageError, match="no structure"):
        make_plan(fingerprint(), dataset(names=()))
    with pytest.raises(UsageError, match="301 classes"):
        make_plan(fingerprint(), dataset(names=[f"x{i}" for i in range(300)]))


def test_every_decision_is_explained():
    plan = make_plan(fingerprint(), dataset())
    table = explain(plan)
    assert len(table) == 11
    for what, value, why in table:
        assert what
        assert value
        assert why.endswith(".")
        assert why[0].isupper() or why[0] in "'0123456789"
    assert set(plan.reasons) <= {field.name for field in dataclasses.fields(plan)}


def test_structures_that_are_one_piece():
    plan = make_plan(fingerprint(whole=(3, 2, 3)), dataset(names=("a", "b", "tumour")))
    assert plan.one_piece == (False, True, False, False)
    assert ("one piece", "a") in [(what, value) for what, value, _ in explain(plan)]
    nothing = make_plan(fingerprint(), dataset())
    assert nothing.one_piece == (False, False)
    assert nothing.reasons["one_piece"].startswith("No labelled patient")


def test_a_plan_from_before_one_piece_keeps_every_piece(written):
    plan, path = written
    text = path.read_text(encoding="utf-8")
    line = "one_piece: [false, false, false]\n"
    assert line in text
    path.write_text(text.replace(line, ""), encoding="utf-8")
    old = read_plan(path)
    assert old.one_piece == ()
    assert {what: value for what, value, _ in explain(old)}["one piece"] == "none"
    write_plan(path, old)
    assert read_plan(path) == old == dataclasses.replace(plan, one_piece=())


@pytest.fixture
def written(tmp_path):
    """A plan with one of everything, and its file."""
    plan = make_plan(
        fingerprint(channels=("CT", "MR")), dataset(names=("ä", "b"), channels=("CT", "MR"), ignore=8)
    )
    path = tmp_path / "plan.yaml"
    write_plan(path, plan)
    return plan, path


def test_file_round_trip(written):
    plan, path = written
    assert read_plan(path) == plan
    assert "# Voxel size along D, H, W" in path.read_text(encoding="utf-8")
    flat = dataclasses.replace(
        plan, spacing_mm=(None, 1.0, 1.0), dims=2, patch=(64, 48), mirror=(True, False)
    )
    network = dataclasses.replace(
        plan.network,
        strides=((2, 2),) * (len(plan.network.widths) - 1),
        kernels=((3, 3),) * len(plan.network.widths),
    )
    flat = dataclasses.replace(flat, network=network)
    write_plan(path, flat)
    assert read_plan(path) == flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patchs": [1]}, "did you mean 'patch'"),
        ({"network": {"width": [8], "strides": [], "kernels": [[3, 3, 3]]}}, "did you mean 'widths'"),
        ({"channels": [{"kindd": "zscore"}, {}]}, "did you mean 'kind'"),
        ({"channels": []}, "one normalisation a channel"),
        ({"channels": [{"kind": "window", "low": 3.0, "high": 1.0}]}, "low < high"),
        ({"channels": [{"spread": 0.0}]}, "spread must be positive"),
        ({"turned": 15}, "turned is a share from 0 to 1, found 15"),
        ({"dims": 4}, "dims"),
        ({"dims": 2}, "patch needs 2 numbers because dims is 2"),
        ({"patch": [50, 48, 48]}, "50 is not a multiple of 8 .* use 48 or 56"),
        ({"patch": [3, 48, 48]}, "use 8"),
        ({"axes": [0, 0, 1]}, "0, 1 and 2 once each"),
        ({"spacing_mm": [None, 1.0, 1.0]}, "along D needs a number"),
        ({"spacing_mm": [1.0, -1.0, 1.0]}, "along H must be positive"),
        ({"label_values": [0, 1, 1]}, "label_values holds 1 more than once"),
        ({"label_names": ["background", "a"]}, "3 label_values but 2 label_names"),
        ({"ignore_value": 2}, "also one of label_values"),
        ({"one_piece": [False, True]}, "one_piece needs 3 flags.* found 2"),
        ({"one_piece": [True, True, False]}, "one_piece of the background, the first flag, must be false"),
        ({"one_piece": [False, "b", False]}, "one_piece"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"batch": "many"}, "batch"),
        ({"patch": None}, "patch missing"),
    ],
)
def test_an_impossible_edit_is_refused_in_words(written, change, message):
    import yaml

    _, path = written
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if change == {"patch": None}:
        del values["patch"]
    else:
        values.update(change)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_network_edits_are_checked_together(written):
    plan, path = written
    network = dataclasses.replace(
        plan.network, strides=((2, 2, 0),), kernels=((4, 3),) * 2, widths=(8, 16, 32)
    )
    write_plan(path, dataclasses.replace(plan, network=network))
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    for part in (
        "strides needs 2 entries",
        "kernels needs 3 entries",
        "3 numbers an entry",
        "must be 1 or more",
    ):
        assert part in str(caught.value)


def test_a_missing_or_broken_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(DataError, match="not valid YAML"):
        read_plan(tmp_path / "broken.yaml")


def real_plan(root, names, *, labelled=3, images=16, device="cpu"):
    paths = sorted((root / "imagesTr").glob("*.nii.gz"))[:images]
    cases = [
        Case(name=p.name, patient=p.name.split("_frame")[0], images=(p,), label=root / "labelsTr" / p.name)
        for p in paths
    ]
    data = dataclasses.replace(dataset(names=names, channels=("MRI",)), cases=tuple(cases), root=root)
    return make_plan(make_fingerprint(data, cases[:labelled], cases, threads=2), data, device=device)


def test_plan_of_the_hippocampus(shared_data):
    root = shared_data / "Task04_Hippocampus"
    flat = real_plan(root, ("Anterior", "Posterior"))
    assert (flat.dims, flat.patch, flat.planes) == (2, (56, 40), ((0, 1, 2), (1, 0, 2), (2, 1, 0)))
    plan = real_plan(root, ("Anterior", "Posterior"), device="cuda")
    assert (plan.dims, plan.axes, plan.spacing_mm) == (3, (2, 1, 0), (1.0, 1.0, 1.0))
    assert plan.patch == (40, 56, 40)
    assert plan.mirror[1] is False
    assert plan.channels == (Normalisation(),)
    assert plan.one_piece == (False, True, True)


def test_plan_of_the_heart(shared_data):
    plan = real_plan(shared_data / "ACDC", ("right ventricle cavity", "myocardium", "left ventricle cavity"))
    assert (plan.dims, plan.axes, plan.spacing_mm[0]) == (2, (2, 1, 0), None)
    assert all(1.3 < mm < 1.7 for mm in plan.spacing_mm[1:])
    assert all(80 <= n <= 160 for n in plan.patch)
    assert plan.mirror[1] is False


def test_plan_of_the_brain(shared_data):
    names = [
        f"{side} {n}" for n in ("thalamus", "caudate", "putamen", "pallidum") for side in ("left", "right")
    ]
    names += [f"x{n}" for n in range(6)]
    root = shared_data / "OASIS_Subcortical"
    assert len(real_plan(root, names, labelled=2, images=5).planes) == 3
    plan = real_plan(root, names, labelled=2, images=5, device="cuda")
    assert (plan.dims, plan.spacing_mm) == (3, (1.0, 1.0, 1.0))
    assert plan.mirror[2] is False
    assert 100_000 < math.prod(plan.patch) <= BUDGETS["gpu", 3].patch_voxels
