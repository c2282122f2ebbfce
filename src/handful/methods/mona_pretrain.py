"""MONA's first stage (GLCon): relate an image, and each window of it, to other images as a slow teacher does.

Two images of a body region are neither the same nor unrelated, so nothing is called positive or negative: the student
sees a recoloured view and must find how alike it is to remembered images in the proportions in which the teacher,
seeing the plain view of the same pixels, finds it. Once for the whole image (encoder) and once for each window of the
logits (decoder). Where labels are allowed, their Dice and cross entropy are learnt alongside. Trains encoder and
decoder. Made for one to a few labelled cases among many without; MONA's second stage starts from it.

References:
    You et al., 2024, MONA. https://arxiv.org/abs/2209.13476
    You et al., 2023, ARCO, which restates this stage. https://arxiv.org/abs/2302.01735
    Tejankar et al., 2021, ISD, where the relation comes from. https://arxiv.org/abs/2012.09259
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.processes import gathered
from handful.losses.relational import relation, window_relation, windows
from handful.losses.segmentation import dice_ce
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.bank import Bank
from handful.networks.heads import PixelHead, VectorHead
from handful.networks.memory import overlap
from handful.networks.parts import head_of, parts_of
from handful.networks.teacher import Teacher

WINDOWS = 7
"""Windows along an axis: each a quarter of the image long, one every eighth (64 of 256 every 32, as released in 2D)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """MONA's, as ARCO restates them where the released code differs.

    Attributes:
        references: what images are related to: the teacher's embeddings of earlier batches (``bank``, released code),
            or of other images drawn for this step (``mined``, the paper's mined views).
        bank: embeddings remembered; it begins with random directions.
        mined: other images drawn a step.
        strong: which view is recoloured; the other shows the same pixels as they are.
        student_temperature, teacher_temperature: of the relations; the teacher's lower, so that it is sharper.
        global_weight, window_weight, supervised_weight: of the three terms.
        batch: images a step.
        labelled_share: of them from labelled cases, where there are some.
        patch_share: of the planned patch's sides in 3D.
        width: of the image embedding.
        nonlinear: whether ReLU stands between the layers of the image projector.
        cells: a window is averaged to so many cells along each axis, an even number; None is 8 in 2D and 4 in 3D.
        decay: of the teacher a step.
        teacher_trains: dropout and batch statistics act in the teacher too.
        window_form: ``official`` mixes windows and images as the released code does, for comparison only.
    """

    references: Literal["bank", "mined"] = "bank"  # released code
    bank: int = 36  # released code
    mined: int = 5  # ARCO, appendix
    strong: Literal["none", "student", "teacher", "both"] = (
        "student"  # ACTION's best; released 2D: teacher blurred
    )
    student_temperature: float = 0.1  # ARCO, ACTION
    teacher_temperature: float = 0.01  # ARCO, ACTION in 2D; released default: 0.1, ACTION in 3D: 0.6
    global_weight: float = 1.0  # released code
    window_weight: float = 1.0  # released code
    supervised_weight: float = 1.0  # released code in 2D; 0.5 in 3D
    batch: int = 6  # ARCO: three labelled, three not
    labelled_share: float = 0.5  # released code
    patch_share: float = 0.5  # ours; released code: 1
    width: int = 512  # released code
    nonlinear: bool = False  # released code; the papers call the projector non-linear
    cells: int | None = None  # released code: 8 in 2D; ACTION: 4 in 3D
    decay: float = 0.99  # ARCO, released code
    teacher_trains: bool = False  # repaired: pseudo-targets without dropout; released code: True
    window_form: Literal["repaired", "official"] = "repaired"

    def __post_init__(self) -> None:
        counts = (self.bank, self.mined, self.width)
        weights = (self.global_weight, self.window_weight, self.supervised_weight)
        if min(counts) < 1 or self.batch < 2 or min(weights) < 0:
            raise UsageError(
                "bank, mined and width must be at least 1, batch at least 2, weights not negative."
            )
        if self.cells is not None and (self.cells < 2 or self.cells % 2):
            raise UsageError(f"cells must be even, because windows overlap by half; found {self.cells}.")
        if self.references == "mined" and self.mined < 2:
            raise UsageError("a relation to one mined image is always 1: mined must be at least 2.")
        if self.student_temperature <= 0 or self.teacher_temperature <= 0 or not 0 <= self.decay <= 1:
            raise UsageError("temperatures must be positive and decay in [0, 1].")
        if not 0 < self.labelled_share <= 1 or not 0 < self.patch_share <= 1:
            raise UsageError("labelled_share and patch_share must be in (0, 1].")


class Batch(NamedTuple):
    """The student's and the teacher's view of the same pixels, and what they are related to.

    Attributes:
        student, teacher: (B, C, *S).
        label: (B, *S) int64, -1 where unknown; None where no case has labels.
        mined: (M, C, *S) other images; None with a bank.
    """

    student: Tensor
    teacher: Tensor
    label: Tensor | None
    mined: Tensor | None


class Views(NamedTuple):
    """What a branch says of images: logits (B, K, *S), embeddings (B, E), window maps (B, K, *cells)."""

    logits: Tensor
    embedding: Tensor
    cells: Tensor


class Branch(nn.Module):
    """A network and its two projectors: what student and teacher have in common.

    The window projector is two 1x1 convolutions, so that it commutes with cutting: the logits are averaged to a grid
    of cells once, projected once, and cut into windows afterwards (``cut``).
    """

    def __init__(self, network: nn.Module, *, width: int, nonlinear: bool, cells: int) -> None:
        super().__init__()
        parts = parts_of(network)
        self.encoder, self.decoder = parts.encoder, parts.decoder
        self.head, classes = head_of(network)
        self.project = VectorHead(parts.deepest, hidden=parts.deepest, out=width, activation=nonlinear)
        self.project_cells = PixelHead(dims=parts.dims, in_channels=classes, hidden=2 * classes, out=classes)
        # windows a quarter long, one every eighth: four windows side by side fill the image
        self.pool = (nn.AdaptiveAvgPool2d if parts.dims == 2 else nn.AdaptiveAvgPool3d)(4 * cells)

    def forward(self, image: Tensor) -> Views:
        features = self.encoder(image)
        logits = self.head(self.decoder(features)[0])
        cells = self.project_cells(self.pool(logits))
        return Views(logits, self.project(features[-1]).float(), cells.float())


class MONAPretrain(Method):
    """Distil relations to other images, globally and per window."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True, optional_labels=True)
    paper: ClassVar[str] = "You et al. 2024, MONA (first stage), https://arxiv.org/abs/2209.13476"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        parts = parts_of(network)
        self.stride = parts.stride
        _, classes = head_of(network)
        self.cells = settings.cells or (8 if parts.dims == 2 else 4)
        self.student = Branch(network, width=settings.width, nonlinear=settings.nonlinear, cells=self.cells)
        # a copy, detached and averaged; the released teacher's projectors start elsewhere, get gradients and are
        # averaged as well
        self.teacher = Teacher(self.student, follow_mode=settings.teacher_trains)
        self.predict = nn.Sequential(
            nn.Linear(settings.width, settings.width), nn.Linear(settings.width, settings.width)
        )
        self.predict_cells = PixelHead(dims=parts.dims, in_channels=classes, hidden=classes, out=classes)
        self.bank: Bank | None = None
        if settings.references == "bank":
            self.bank, self.window_bank = (
                Bank(settings.bank, settings.width),
                Bank(settings.bank, WINDOWS**parts.dims, classes * self.cells**parts.dims),
            )
            # as released; an empty bank would teach nothing, and random directions leave within bank / batch steps
            for bank in (self.bank, self.window_bank):
                bank.enqueue(torch.randn_like(bank.rows))
        self.fresh: tuple[Tensor, Tensor] | None = None

    def batch(self, source: Source) -> Batch:
        """Draw labelled and other images, a plain and a recoloured view of each, and images to relate them to.

        Raises:
            DataError: the first images all overlap each other.
        """
        settings = self.settings
        if len(self.stride) == 3:
            source = source.smaller(settings.patch_share, multiple=self.stride)
        crops = source.draw_partly_labelled(settings.batch, share=settings.labelled_share)
        box = torch.cat([crops.case[:, None], crops.low, crops.high], dim=1)
        if source.step == 0 and overlap(box, box).all():
            raise DataError(
                f"all {settings.batch} images of a step overlap in one case: relating images to each other needs more "
                "cases, or in 3D smaller patches (--set method.patch_share=0.25)."
            )
        plain = source.view(crops, intensity=False)
        student, teacher = (
            source.recolour(plain, stream=stream).image if settings.strong in (who, "both") else plain.image
            for stream, who in enumerate(("student", "teacher"))
        )
        mined = None
        if settings.references == "mined":
            mined = source.view(source.draw_any(settings.mined, stream=5), stream=5).image
        return Batch(student, teacher, plain.label, mined)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """The two relations of the student's view against the teacher's, and the labels."""
        settings = self.settings
        own, target = self.student(batch.student), self.teacher(batch.teacher)
        embedding = self.predict(own.embedding).float()
        student_windows = self.cut(self.predict_cells(own.cells).float())
        target_windows = self.cut(target.cells)
        if self.bank is not None:
            references, reference_windows = self.bank.valid, self.window_bank.valid
            self.fresh = (gathered(target.embedding), gathered(target_windows))
        else:
            mined = self.teacher(batch.mined)
            references, reference_windows = gathered(mined.embedding), gathered(self.cut(mined.cells))
        temperatures = {
            "student_temperature": settings.student_temperature,
            "teacher_temperature": settings.teacher_temperature,
        }
        terms = {
            "global_relation": settings.global_weight
            * relation(embedding, target.embedding, references, **temperatures),
            "window_relation": settings.window_weight
            * window_relation(
                student_windows, target_windows, reference_windows, form=settings.window_form, **temperatures
            ),
        }
        if batch.label is not None:
            # every class and squared probabilities, as SSL4MIS
            supervised = dice_ce(
                own.logits, batch.label, include_background=True, squared=True, processes=True
            )
            terms["supervised"] = settings.supervised_weight * supervised
        loss = torch.stack(list(terms.values())).sum()
        watched = Watched(torch.stack([embedding.detach(), target.embedding], dim=1))
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, terms, watched)

    def after_step(self, progress: float) -> None:
        """Move the teacher and remember what it said of this step's images."""
        self.teacher.update(self.student, self.settings.decay)
        if self.bank is not None and self.fresh is not None:
            self.bank.enqueue(self.fresh[0])
            self.window_bank.enqueue(self.fresh[1])

    def exports(self) -> Mapping[str, nn.Module]:
        """The student's encoder and decoder; its head, the projectors, the teacher and the banks are dropped."""
        return {"encoder": self.student.encoder, "decoder": self.student.decoder}

    def cut(self, cells: Tensor) -> Tensor:
        """Cut projected cells (B, K, *cells) into embeddings of windows (B, P, E)."""
        return windows(cells, size=self.cells, step=self.cells // 2).flatten(2)


METHOD = MONAPretrain
