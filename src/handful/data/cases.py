"""One data set object that knows which cases are labelled, unlabelled and held out, and whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handful.errors import DataError, nearest


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume (one file a channel) and perhaps its label map.

    Attributes:
        name: unique in the data set; predictions are called ``<name>.nii.gz``.
        patient: group of cases that a split never cuts.
        images: one file a channel, in the order of ``Dataset.channel_names``.
        label: the label map, or None for an unlabelled case.
        held_out: the data set itself sets this case aside as test; it never trains anything.
        annotated: values of the structures that were annotated, where others may be there unlabelled; None: all were.
    """

    name: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None = None
    held_out: bool = False
    annotated: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Every case of a folder, read in place.

    Attributes:
        name: what the folder or its ``dataset.json`` calls itself.
        root: the folder (of the manifest, for a CSV).
        layout: how it was read: ``msd``, ``nnunet``, ``folders`` or ``csv``.
        cases: sorted by name.
        label_names: value in the label files -> name; 0 is background. Values need not be contiguous.
        channel_names: one a channel, for example ``("MRI",)`` or ``("CT",)``.
        ignore_value: value in the label files that means "no label here", or None.
        patients_from: where ``Case.patient`` came from, in words; None if every case is its own patient.
        notes: things the user should know (a case per patient assumed, test images without labels left out, ...).
    """

    name: str
    root: Path
    layout: str
    cases: tuple[Case, ...]
    label_names: Mapping[int, str]
    channel_names: tuple[str, ...]
    ignore_value: int | None = None
    patients_from: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a label map that are not held out."""
        return tuple(c for c in self.cases if c.label is not None and not c.held_out)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases without a label map that are not held out."""
        return tuple(c for c in self.cases if c.label is None and not c.held_out)

    @property
    def held_out(self) -> tuple[Case, ...]:
        """Cases the data set sets aside as test."""
        return tuple(c for c in self.cases if c.held_out)

    def case(self, name: str) -> Case:
        """Return the case called ``name``; unknown names are a ``DataError`` that names the nearest one."""
        for case in self.cases:
            if case.name == name:
                return case
        names = [c.name for c in self.cases]
        hint = nearest(name, names) if len(names) <= 20 else nearest(name, names).split("? ")[0]
        raise DataError(f"{self.root}: there is no case '{name}'; {hint}")
