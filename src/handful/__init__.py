"""A handful of labels is enough: segmentation models from folders of CT and MR volumes of which few are labelled.

The names below are what programs use; each is imported when it is first asked for, because torch costs seconds.

Example:
    >>> import handful
    >>> dataset = handful.open_dataset("Task04_Hippocampus")
    >>> run = handful.Run(handful.train(dataset.root, "runs/hippocampus", labels="10", test="40"))
    >>> run.evaluate(dataset.root).mean["dice"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handful.data.cases import Case as Case
    from handful.data.cases import Dataset as Dataset
    from handful.data.check import check_dataset as check_dataset
    from handful.data.discover import open_dataset as open_dataset
    from handful.errors import DataError as DataError
    from handful.errors import HandfulError as HandfulError
    from handful.errors import RunError as RunError
    from handful.errors import UsageError as UsageError
    from handful.inference.predict import predict as predict
    from handful.metrics.evaluate import evaluate as evaluate
    from handful.report.page import write_report as write_report
    from handful.report.study import write_study_report as write_study_report
    from handful.studies.study import study as study
    from handful.suggestion.suggest import suggest as suggest
    from handful.training.result import Run as Run
    from handful.training.run import pretrain as pretrain
    from handful.training.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "Case": "handful.data.cases",
    "DataError": "handful.errors",
    "Dataset": "handful.data.cases",
    "HandfulError": "handful.errors",
    "Run": "handful.training.result",
    "RunError": "handful.errors",
    "UsageError": "handful.errors",
    "check_dataset": "handful.data.check",
    "evaluate": "handful.metrics.evaluate",
    "open_dataset": "handful.data.discover",
    "predict": "handful.inference.predict",
    "pretrain": "handful.training.run",
    "study": "handful.studies.study",
    "suggest": "handful.suggestion.suggest",
    "train": "handful.training.run",
    "write_report": "handful.report.page",
    "write_study_report": "handful.report.study",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'handful' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
