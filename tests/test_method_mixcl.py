"""Laws of MixCL-style pre-training: what it mixes, which term trains what, and that labels are optional."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.batches import IGNORE
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.mixcl import identity_contrast
from handful.losses.segmentation import dice_ce
from handful.methods.mixcl import Batch, MixCL, Settings, mixed, stretched
from handful.networks.build import build_network, unet_architecture
from handful.networks.memory import overlap
from test_methods import phantom_source

STILL = AugmentSettings(
    **{name: 0.0 for name in AugmentSettings.__dataclass_fields__ if name.startswith("p_")}
)


def method(dims: int = 2, **settings: Any) -> MixCL:
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), strides=((2,) * dims,) * 2, blocks=1,
            norm="instance",
        )
    )  # fmt: skip
    return MixCL(network, Settings(**{"batch": 4, "pixels": 64, **settings}))


def painted_source(dims: int, **changes: Any) -> Source:
    """The phantom with its labels painted into the images, so that images and labels can be compared."""
    source = dataclasses.replace(phantom_source(dims), **changes)
    labelled = [dataclasses.replace(case, image=case.label[None].float()) for case in source.labelled]
    return dataclasses.replace(source, labelled=labelled)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_views_targets_labels_and_mixtures_stay_in_step(dims: int, mix: str) -> None:
    mirrored = dataclasses.replace(STILL, p_mirror=0.5)
    source = painted_source(dims, augment=mirrored, mirror=(True,) * dims)
    batch = method(dims, mix=mix).batch(source)
    assert torch.equal(batch.image, batch.clean)  # without any change of intensities
    assert not torch.equal(*batch.clean.chunk(2))  # other mirrors
    known = batch.label != IGNORE
    assert known[[0, 1, 4, 5]].all()
    assert not known[[2, 3, 6, 7]].any()  # half of the four patches are labelled
    assert torch.equal(batch.clean[:, 0][known], batch.label[known].float())
    if mix == "none":
        return
    assert sorted(batch.partner.tolist()) == [0, 1, 2, 3]
    assert all(batch.partner != torch.arange(4))
    assert 0.4 < batch.weight <= 1
    if mix == "cutmix":
        assert batch.weight == batch.mask.double().mean()
        both = mixed(batch.label, batch)
        assert torch.equal(mixed(batch.clean, batch)[:, 0][both != IGNORE], both[both != IGNORE].float())
        taken = batch.partner[1].item()
        for view in (0, 4):  # the same box and partner in both views
            box = ~batch.mask[0]
            assert torch.equal(mixed(batch.clean, batch)[1 + view, 0][box], batch.clean[taken + view, 0][box])
    else:
        expected = batch.weight * batch.clean[5] + (1 - batch.weight) * batch.clean[4 + batch.partner[1]]
        assert torch.allclose(mixed(batch.clean, batch)[5], expected)


def test_the_terms_are_the_losses_of_what_the_heads_give() -> None:
    made = method(mix="none", label="segmentation")
    batch = made.batch(phantom_source(2))
    output = made.step(batch, 0.0)
    features = made.student.encoder(batch.image)
    finest = made.decoder(features)[0]
    z = made.student.head(features[-1])
    expected = {
        "identity": identity_contrast(*z.chunk(2), temperature=0.2, related=overlap(batch.box, batch.box)),
        "reconstruction": (made.reconstruction_head(finest) - batch.clean).square().mean(),
        "label": dice_ce(made.segmentation_head(finest)[[0, 1, 4, 5]], batch.label[[0, 1, 4, 5]]),
    }
    assert {name: term.item() for name, term in output.terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-5
    )
    assert output.loss.item() == pytest.approx(sum(term.item() for term in expected.values()), rel=1e-5)


def test_collapsed_embeddings_cost_the_log_of_what_they_are_compared_with() -> None:
    made = method(mix="cutmix", label="none", reconstruction="none")
    batch = made.batch(phantom_source(2))
    batch = batch._replace(box=torch.arange(4)[:, None].expand(4, 7) + torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    made.student.head.layers[-1].weight.data.zero_()
    plain, mixture = math.log(7), math.log(4)  # 2B - 1 other views; B keys of the other view
    assert made.step(batch, 0.0).loss.item() == pytest.approx((plain + mixture) / 2, rel=1e-5)


@pytest.mark.parametrize("label", ["contrast", "segmentation"])
def test_a_mixture_that_keeps_everything_costs_what_the_plain_views_cost(label: str) -> None:
    made = method(mix="cutmix", identity="none", label=label, pixels=10**6)
    batch = made.batch(phantom_source(2))
    batch = batch._replace(mask=torch.ones_like(batch.mask), weight=1.0)
    plain = method(mix="none", identity="none", label=label, pixels=10**6)
    plain.load_state_dict(made.state_dict())
    alone = plain.step(batch._replace(partner=None, mask=None), 0.0).terms
    for name, term in made.step(batch, 0.0).terms.items():
        assert term.item() == pytest.approx(alone[name].item(), rel=1e-5), name


def test_swapping_the_views_leaves_the_loss() -> None:
    made = method(label="segmentation")
    batch = made.batch(phantom_source(2))

    def swapped(maps: Tensor) -> Tensor:
        return torch.cat(maps.chunk(2)[::-1])

    other = batch._replace(**{name: swapped(getattr(batch, name)) for name in ("image", "clean", "label")})
    assert made.step(other, 0.0).loss.item() == pytest.approx(made.step(batch, 0.0).loss.item(), rel=1e-5)


def test_each_term_trains_its_own_head_and_what_is_under_it() -> None:
    made = method()
    terms = made.step(made.batch(phantom_source(2)), 0.0).terms
    heads = {
        "identity": made.student.head,
        "label": made.pixel_head,
        "reconstruction": made.reconstruction_head,
    }
    for name, term in terms.items():
        made.zero_grad()
        term.backward(retain_graph=True)
        reached = {
            part
            for part, module in {
                **heads,
                "encoder": made.student.encoder,
                "decoder": made.decoder,
            }.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        }
        assert reached == {name, "encoder"} | ({"decoder"} if name != "identity" else set())


TERMS = [
    (identity, label)
    for identity in ("nt_xent", "queue", "simsiam", "byol", "none")
    for label in ("contrast", "segmentation", "none")
    if (identity, label) != ("none", "none")
]


@pytest.mark.parametrize(("identity", "label"), TERMS)
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_every_choice_trains_exactly_what_it_registers(mix: str, identity: str, label: str) -> None:
    made = method(mix=mix, identity=identity, label=label, reconstruction="none", queue=16)
    made.step(made.batch(phantom_source(2)), 0.0).loss.backward()
    reached = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {n for n, p in made.named_parameters() if p.requires_grad}
    assert set(made.exports()) == ({"encoder"} if label == "none" else {"encoder", "decoder"})


def test_without_labels_the_label_term_is_left_out_and_the_rest_stays() -> None:
    source = dataclasses.replace(phantom_source(2), labelled=())
    made = method()
    batch = made.batch(source)
    assert batch.label is None
    output = made.step(batch, 0.0)
    assert set(output.terms) == {"identity", "reconstruction"}
    unknown = torch.full((8, *batch.image.shape[2:]), IGNORE)
    silent = made.step(batch._replace(label=unknown), 0.0)
    assert silent.terms["label"].item() == 0
    assert silent.loss.item() == pytest.approx(output.loss.item(), rel=1e-6)
    silent.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
    with pytest.raises(DataError, match="no case has labels: nothing is left"):
        method(identity="none", reconstruction="none").batch(source)


@pytest.mark.parametrize("identity", ["queue", "byol"])
def test_the_teacher_follows_and_the_queue_remembers_its_keys(identity: str) -> None:
    made = method(identity=identity, label="none", reconstruction="none", queue=12, decay=0.5)
    for parameter in made.student.parameters():
        parameter.data.add_(0.1)
    before = {n: p.clone() for n, p in made.teacher.module.named_parameters()}
    batch = made.batch(phantom_source(2))
    with torch.no_grad():
        keys = copy.deepcopy(made.teacher)(batch.image)
    for _ in range(2):
        made.step(batch, 0.0)
        made.after_step(0.0)
        student = dict(made.student.named_parameters())
        for name, tensor in made.teacher.module.named_parameters():
            assert torch.allclose(tensor, (before[name] + student[name]) / 2, atol=1e-6), name
        before = {n: p.clone() for n, p in made.teacher.module.named_parameters()}
    if identity == "queue":
        held, boxes = made.memory.valid
        assert len(held) == 12
        assert torch.allclose(
            held[4:8], keys[4:8], atol=1e-5
        )  # 16 keys in 12 places: the first four are gone
        assert torch.equal(boxes[4:8], batch.box)
    again = method(identity=identity, label="none", reconstruction="none", queue=12, decay=0.5)
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    assert torch.equal(again.step(batch, 0.0).loss, made.step(batch, 0.0).loss)


def test_a_sigmoid_is_compared_with_the_patch_between_its_least_and_largest_value() -> None:
    made = method(mix="none", identity="none", label="none", output="sigmoid")
    batch = made.batch(phantom_source(2))
    made.reconstruction_head.weight.data.zero_()
    made.reconstruction_head.bias.data.zero_()
    flat = batch.clean.flatten(1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    expected = (0.5 - (flat - low) / (high - low)).square().mean()
    assert made.step(batch, 0.0).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    image = batch.clean[:2]
    assert torch.allclose(stretched(3 * image - 7), stretched(image), atol=1e-5)
    assert stretched(torch.full((1, 1, 4, 6), 2.0)).eq(0).all()


def test_corrupting_changes_the_input_alone() -> None:
    source = dataclasses.replace(phantom_source(2), augment=STILL)
    plain, corrupted = (method(corrupt=corrupt).batch(source) for corrupt in (False, True))
    assert torch.equal(corrupted.clean, plain.clean)
    assert torch.equal(corrupted.label, plain.label)
    assert torch.equal(plain.image, plain.clean)
    assert not torch.equal(corrupted.image, corrupted.clean)


def test_one_case_without_room_is_refused_in_words() -> None:
    source = phantom_source(3)
    alone = dataclasses.replace(source, labelled=source.labelled[:1], unlabelled=())
    with pytest.raises(DataError, match="needs more cases, or in 3D smaller patches"):
        method(3, patch_share=1.0).batch(alone)
    assert isinstance(method(3, patch_share=1.0, identity="simsiam").batch(alone), Batch)


def test_choices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing is left to learn"):
        Settings(identity="none", label="none", reconstruction="none")
    with pytest.raises(UsageError, match="batch must be at least 2"):
        Settings(batch=1)
    with pytest.raises(UsageError, match="levels 0"):
        method(label_level=2)


def test_patches_of_the_same_tissue_are_no_negatives() -> None:
    made = method(mix="none", label="none", reconstruction="none")
    batch = made.batch(phantom_source(2))
    box = torch.arange(4)[:, None].expand(4, 7) + torch.tensor([0, 0, 0, 0, 1, 1, 1])
    apart = made.step(batch._replace(box=box), 0.0).loss.item()
    z = F.normalize(made.student(batch.image), dim=1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    partner = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    assert apart == pytest.approx(F.cross_entropy(logits, partner).item(), rel=1e-5)
    together = box.clone()
    together[1] = together[0]
    logits[[0, 0, 4, 4, 1, 1, 5, 5], [1, 5, 1, 5, 0, 4, 0, 4]] = -math.inf
    expected = F.cross_entropy(logits, partner).item()
    assert made.step(batch._replace(box=together), 0.0).loss.item() == pytest.approx(expected, rel=1e-5)
