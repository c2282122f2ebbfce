"""A training in a process of its own that is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SCRIPT = """
import json, sys
from handful.training.run import train
train(**json.loads(sys.argv[1]))
"""


def killed_at(metrics: Path, arguments: Mapping[str, object]) -> None:
    """Call ``train`` with the arguments, and SIGKILL it once ``metrics`` has two rows."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
