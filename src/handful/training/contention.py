"""Whether other programs take the processors from a training, told from the clocks of the thread that trains."""

SHARE = 0.6
"""A thread that has a processor to itself computes nearly all the time of a step; under this share it does not."""

SECONDS = 10.0
"""Judged over at least so long."""


class Contention:
    """Add up how long steps on the CPU took and how much of that their thread computed; speak up once.

    Example:
        >>> contention = Contention()
        >>> contention.add(computed_s=5, passed_s=10)
        >>> "50% of the time" in contention.sentence()
        True
    """

    def __init__(self) -> None:
        self.computed_s = self.passed_s = 0.0
        self.said = False

    def add(self, computed_s: float, passed_s: float) -> None:
        """Add one step: CPU time of the thread that trains, and time on the wall."""
        self.computed_s += computed_s
        self.passed_s += passed_s

    def sentence(self) -> str | None:
        """Return what to tell the user of the steps since the last judgement, or None; never twice in a run."""
        if self.said or self.passed_s < SECONDS:
            return None
        share = self.computed_s / self.passed_s
        self.computed_s = self.passed_s = 0.0
        if share >= SHARE:
            return None
        self.said = True
        return (
            "other programs use the processors, or --threads is more than there are; training is slowed "
            f"(it computes {share:.0%} of the time)"
        )
