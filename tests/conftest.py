"""Fixtures that every test file may ask for: real data where there is some, and a tiny phantom data set."""

import os
from pathlib import Path

import pytest

from handful.data.phantom import make_phantom

# before any test imports torch: tests run beside each other, and small tensors gain nothing from threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


class RealData:
    """The folder of real volumes; a set that is not there skips the test that asks for it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        folder = self.root / name
        if not folder.exists():
            pytest.skip(f"real data: there is no {name} in {self.root} (set HANDFUL_DATA)")
        return folder


@pytest.fixture(scope="session")
def shared_data() -> RealData:
    """Real data sets by name, ``shared_data / "Task04_Hippocampus"``; read only, skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("HANDFUL_DATA", default))
    if not root.is_dir():
        pytest.skip(f"real data: {root} does not exist (set HANDFUL_DATA to the folder of real volumes)")
    return RealData(root)


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny phantom, read only: 8 patients, about 26 x 22 x 18, 2 of them unlabelled, 2 held out."""
    out = tmp_path_factory.mktemp("data") / "Phantom"
    return make_phantom(
        out, patients=8, unlabelled=2, held_out=2, size=(26, 22, 18), spacing_mm=(3.0, 3.2, 4.5)
    )
