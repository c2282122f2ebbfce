"""Learning rates and decays as functions of progress, which runs from 0 to 1 over a run."""

import math
from collections.abc import Callable


def one_cycle(progress: float, *, warm_up: float = 0.1, start: float = 0.04, end: float = 1e-3) -> float:
    """Return the share of the peak learning rate: cosine up to 1 during ``warm_up``, cosine down to ``end`` after.

    Source: Smith and Topin 2018, https://arxiv.org/abs/1708.07120.
    """
    if progress < warm_up:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * progress / warm_up))
    fall = min((progress - warm_up) / (1 - warm_up), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * fall))


def polynomial(progress: float, *, power: float = 0.9) -> float:
    """Return (1 - progress)^power, nnU-Net's decay."""
    return float((1 - min(progress, 1.0)) ** power)


def cosine(progress: float) -> float:
    """Return half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def step(progress: float, *, drops: int = 3) -> float:
    """Return 1, then a tenth as much after each of ``drops`` - 1 equal shares of the run (1, 0.1, 0.01)."""
    return float(0.1 ** math.floor(min(progress, 1 - 1e-9) * drops))


def constant(progress: float) -> float:
    """Return 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": one_cycle,
    "polynomial": polynomial,
    "cosine": cosine,
    "step": step,
    "constant": constant,
}


def ema_decay(step: int, gain: float, *, horizon: float) -> float:
    """Return the decay of averaged weights for a step that moved progress by ``gain``.

    The average looks back over a share ``horizon`` of the run, however many steps that is, so short and long runs
    average alike: decay = exp(-gain / horizon). Early on it is held under (1 + n) / (10 + n), so that the random
    starting weights are forgotten. A horizon of 0 keeps no memory: decay 0.
    """
    if horizon == 0:
        return 0.0
    return min(math.exp(-gain / horizon), (1 + step) / (10 + step))
