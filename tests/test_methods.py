"""The contract: laws every method obeys, in 2D and 3D. A new method is covered by existing."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings, Source, StoredCase, foreground_voxels
from handful.errors import UsageError
from handful.methods import load_method, method_names
from handful.methods.contract import Method
from handful.networks.bank import Bank
from handful.networks.build import build_network, unet_architecture
from handful.networks.teacher import Teacher
from handful.networks.unet import UNet

CASES = [(name, dims) for name in method_names() for dims in (2, 3)]


def made(name: str, dims: int) -> Method:
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), strides=((2,) * dims,) * 2,
            kernels=((3,) * dims,) * 3, blocks=1, kind="plain", norm="instance", deep_supervision=True,
        )
    )  # fmt: skip
    module = load_method(name)
    method: Method = module.METHOD(network, module.Settings())
    return method


def phantom_source(dims: int, step: int = 0, progress: float = 0.5) -> Source:
    rng = np.random.default_rng(1)
    cases = []
    for i in range(4):
        label = np.zeros((12, 18, 15), dtype=np.uint8)
        label[2:8, 3 + i : 12, 2:9] = 1
        label[5:11, 10:17, 6:13] = 2
        image = label[None].astype(np.float32) + 0.3 * rng.normal(size=(1, *label.shape)).astype(np.float32)
        cases.append(
            StoredCase(
                f"c{i}",
                torch.from_numpy(image),
                torch.from_numpy(label),
                foreground_voxels(label, 3),
                (1.5, 1.0, 1.0),
            )
        )
    hidden = [dataclasses.replace(case, label=None, foreground=()) for case in cases[2:]]
    return Source(
        labelled=cases[:2], unlabelled=hidden, patch=(8, 16, 12)[3 - dims :], batch=3, classes=3,
        mirror=(False,) * dims, augment=AugmentSettings(), sampling=SamplingSettings(),
        device=torch.device("cpu"), seed=0, step=step, progress=progress,
    )  # fmt: skip


def test_there_are_methods() -> None:
    assert "supervised" in method_names()


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_gradients_reach_exactly_the_trainable_parameters(name: str, dims: int) -> None:
    method = made(name, dims)
    for progress in (0.2, 0.8):  # methods of several stages train different parts at different times
        method.step(method.batch(phantom_source(dims, progress=progress)), progress).loss.backward()
    reached = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {n for n, p in method.named_parameters() if p.requires_grad}


def changed_field(value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return ~value
    if value.dtype == torch.int64:
        return (value + 1) % 3
    other = value.flip(0) * 1.5
    # a mean over the batch undoes an order, and instance norm a factor; of images, nothing undoes a square
    return other + value.square() if value.ndim >= 4 else other


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_changing_any_field_of_the_batch_changes_the_loss(name: str, dims: int) -> None:
    method = made(name, dims).eval()
    for module in method.modules():
        if isinstance(module, UNet):  # an untrained network is sure of nothing; many a term asks it to be
            for parameter in module.heads.parameters():
                parameter.data.mul_(10)
    batch = method.batch(phantom_source(dims))
    before = method.step(batch, 0.5).loss
    changed = 0
    for field, value in batch._asdict().items():
        if isinstance(value, Tensor):
            other = changed_field(value)
            assert not torch.equal(method.step(batch._replace(**{field: other}), 0.5).loss, before), field
            changed += 1
    assert changed >= 1


def forgot(method: Method) -> bool:
    """Empty the queues; return whether there were any."""
    banks = [module for module in method.modules() if isinstance(module, Bank)]
    for bank in banks:
        bank.set_extra_state(torch.tensor([0, 0]))
    return bool(banks)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_fifteen_steps_on_one_batch_lower_the_loss(name: str, dims: int) -> None:
    method = made(name, dims)
    batch = method.batch(phantom_source(dims))
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    # some terms weigh more towards the end of a run: the loss of the untrained weights is taken as the last one is
    losses = [method.step(batch, 14 / 15).loss.item()]
    for number in range(15):
        queued = forgot(method)  # filled with this very batch, queues would make every step another task
        optimiser.zero_grad()
        loss = method.step(batch, number / 15).loss
        loss.backward()
        optimiser.step()
        method.after_step(number / 15)
        losses.append(loss.item())
    # contrast has a floor well above 0, see docs/methods; higher still against a slow teacher, which hardly moves
    assert losses[-1] < (0.9 if method.kind == "train" else 0.99 if queued else 0.97) * losses[0]


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_a_state_round_trip_gives_the_same_loss(name: str, dims: int) -> None:
    method, other = made(name, dims), made(name, dims)
    for parameter in other.parameters():
        parameter.data.add_(1.0)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    batch = method.batch(phantom_source(dims))
    assert torch.equal(method.eval().step(batch, 0.3).loss, other.eval().step(batch, 0.3).loss)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_logs_are_finite_scalars_and_bfloat16_stays_finite(name: str, dims: int) -> None:
    method = made(name, dims)
    batch = method.batch(phantom_source(dims))
    with torch.autocast("cpu", torch.bfloat16):
        output = method.step(batch, 0.5)
    assert output.loss.dtype == torch.float32
    for value in (output.loss, *output.logs.values()):
        assert value.ndim == 0
        assert torch.isfinite(value)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_a_batch_without_any_label_gives_zero_with_a_graph(name: str, dims: int) -> None:
    method = made(name, dims)
    batch = method.batch(phantom_source(dims))
    if not hasattr(batch, "label") or method.needs.unlabelled:
        pytest.skip("the method does not learn from labels alone")
    loss = method.step(batch._replace(label=torch.full_like(batch.label, IGNORE)), 0.5).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_the_method_is_final_documented_and_has_its_paper(name: str, dims: int) -> None:
    module = load_method(name)
    assert module.METHOD.__mro__[1] is Method
    assert module.__doc__
    assert "References:" in module.__doc__
    assert "http" in module.METHOD.paper
    exported = set(made(name, dims).exports())
    assert exported == {"segmenter"} if module.METHOD.kind == "train" else exported <= {"encoder", "decoder"}


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_a_batch_is_a_function_of_seed_and_step(name: str, dims: int) -> None:
    method = made(name, dims)
    first, again = (method.batch(phantom_source(dims, step=3)) for _ in range(2))
    other = method.batch(phantom_source(dims, step=4))
    pairs = [(a, b, c) for a, b, c in zip(first, again, other) if isinstance(a, Tensor)]
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_labels_outside_the_budget_never_reach_a_batch(name: str, dims: int) -> None:
    source = phantom_source(dims)
    poisoned = [
        dataclasses.replace(case, label=torch.full(case.image.shape[1:], 2, dtype=torch.uint8))
        for case in source.unlabelled
    ]
    method = made(name, dims)
    clean = method.batch(source)
    for a, b in zip(clean, method.batch(dataclasses.replace(source, unlabelled=poisoned))):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def students(method: Method, teacher: Teacher) -> list[torch.nn.Module]:
    """Modules of the method that are made as the teacher's and are trained."""
    keys = dict(teacher.module.named_parameters()).keys()
    return [
        module
        for module in method.children()
        if dict(module.named_parameters()).keys() == keys
        and any(p.requires_grad for p in module.parameters())
    ]


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_a_teacher_is_never_trained_and_moves_towards_its_student_by_one_decay(name: str, dims: int) -> None:
    method = made(name, dims)
    for teacher in [module for module in method.modules() if isinstance(module, Teacher)]:
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        (student,) = students(method, teacher)
        method.step(method.batch(phantom_source(dims)), 0.5)
        for _ in range(2):
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.add_(torch.randn_like(parameter))
            before = torch.cat([p.flatten() for p in teacher.parameters()])
            target = torch.cat([p.detach().flatten() for p in student.parameters()])
            method.after_step(0.5)
            after = torch.cat([p.flatten() for p in teacher.parameters()])
            share = ((after - before) @ (target - before)) / (target - before).square().sum()
            assert 1e-4 < share <= 1, "it moves, and not past its student"
            torch.testing.assert_close(after, before + share * (target - before), rtol=1e-3, atol=1e-5)


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'supervised'"):
        load_method("spuervised")
    with pytest.raises(UsageError, match="does not define METHOD"):
        load_method("json.decoder")
    with pytest.raises(UsageError, match="cannot be imported"):
        load_method("no.such.module")
