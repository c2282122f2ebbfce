"""How many processes train one model together, and which of them this one is. Imports no torch.

Whoever starts the processes says so in the environment: torchrun, SLURM's ``srun``, or this program itself, which
starts the others of a machine when it is told ``--devices``.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from handful.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """The processes of one training.

    Attributes:
        devices: on each machine, one process each.
        nodes: machines.
        rank: of this process among all, from 0; rank 0 writes the run and speaks.
    """

    devices: int = 1
    nodes: int = 1
    rank: int = 0

    @property
    def world(self) -> int:
        """How many there are."""
        return self.devices * self.nodes

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0


def processes(
    devices: int | None = None, nodes: int | None = None, environment: Mapping[str, str] = os.environ
) -> Processes:
    """Return what was asked for, or what torchrun or SLURM started.

    Args:
        devices: processes on each machine; None: as many as were started there, one if nobody started any.
        nodes: machines; None likewise.
        environment: variables of this process.

    Raises:
        UsageError: fewer than one, or not what was started.

    Example:
        >>> processes(2, environment={})
        Processes(devices=2, nodes=1, rank=0)
        >>> processes(2, environment={"LOCAL_RANK": "1"}).first
        False
    """
    if min(devices or 1, nodes or 1) < 1 or 0 in (devices, nodes):
        raise UsageError(f"--devices and --nodes must be at least 1, found {devices} and {nodes}.")
    started = _started(environment)
    if started is None:
        devices, nodes = devices or 1, nodes or 1
        rank = int(environment.get("NODE_RANK", 0)) * devices + int(environment.get("LOCAL_RANK", 0))
        if rank >= devices * nodes:
            raise UsageError(
                f"this process is number {rank} by NODE_RANK and LOCAL_RANK, but --devices {devices} --nodes {nodes} "
                f"makes {devices * nodes}. Unset them, or give --devices and --nodes as they were started."
            )
        return Processes(devices, nodes, rank)
    who, found = started
    for name, asked, there in (("devices", devices, found.devices), ("nodes", nodes, found.nodes)):
        if asked not in (None, there):
            raise UsageError(
                f"--{name} {asked}: {who} started {found.devices} processes on each of {found.nodes} machines; leave "
                f"--{name} away, or start as many."
            )
    return found


def _started(environment: Mapping[str, str]) -> tuple[str, Processes] | None:
    """Return who started several processes, and which; torchrun inside a SLURM job comes first."""
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return "torchrun", Processes(local, world // local, int(environment["RANK"]))
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1 and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        if "SLURM_NTASKS_PER_NODE" not in environment:
            raise UsageError(
                "SLURM: ask for --ntasks-per-node instead of --ntasks, one task for each device."
            )
        local = int(environment["SLURM_NTASKS_PER_NODE"])
        return "srun", Processes(local, tasks // local, int(environment["SLURM_PROCID"]))
    return None
