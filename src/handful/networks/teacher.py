"""The teacher: a copy of a student that follows it as an exponential moving average and is never trained itself."""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Hold an averaged copy of ``student``; calling it calls the copy, without gradient.

    After ``update`` every parameter is ``decay * teacher + (1 - decay) * student``. Buffers of floating point (batch
    norm's running mean and variance) are averaged by the same law, so that they belong to the averaged weights; other
    buffers (batch norm's counter) are copied.

    The copy stays in evaluation mode whatever ``train`` is called on around it, unless ``follow_mode``: then dropout
    and batch statistics act in the teacher too while its owner trains, as in the released Mean Teacher and MONA code.

    Attributes:
        module: the averaged copy; its parts (``teacher.module.encoder``) may be called under ``torch.no_grad``.
        followed: how many times ``follow`` was called; saved with the weights.

    References:
        Tarvainen and Valpola, 2017. https://arxiv.org/abs/1703.01780
    """

    def __init__(self, student: nn.Module, *, follow_mode: bool = False) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.follow_mode = follow_mode
        self.followed = 0
        self.train(self.training)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "Teacher":
        super().train(mode)
        self.module.train(mode and self.follow_mode)
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move towards ``student``: 1 keeps the teacher, 0 copies the student.

        Raises:
            ValueError: ``decay`` outside [0, 1], or a student of another make than the teacher.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a teacher lies in [0, 1], found {decay}.")
        mine, theirs = _tensors(self.module), _tensors(student)
        if mine.keys() != theirs.keys():
            differing = sorted(mine.keys() ^ theirs.keys())[:3]
            raise ValueError(
                f"teacher and student are not the same network; they differ in {', '.join(differing)}."
            )
        averaged = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        if averaged:
            torch._foreach_lerp_(
                [mine[name] for name in averaged], [theirs[name] for name in averaged], 1 - decay
            )
        for name in mine.keys() - set(averaged):
            mine[name].copy_(theirs[name])

    def follow(self, student: nn.Module, decay: float) -> None:
        """Move towards ``student`` by ``decay``, more quickly while young (``warmed_up``)."""
        self.update(student, warmed_up(decay, self.followed))
        self.followed += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.followed)

    def set_extra_state(self, state: Any) -> None:
        self.followed = int(state)


def warmed_up(decay: float, update: int) -> float:
    """Return the smaller of ``decay`` and (1 + n) / (10 + n) after n updates: a young teacher follows quickly.

    The rule of TensorFlow's moving averages: 0.1, 0.18, 0.25, ... 0.9 at n = 80, 0.99 at n = 890.
    """
    return min(decay, (1 + update) / (10 + update))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Name every parameter and buffer once, stored or not."""
    return dict(chain(network.named_parameters(), network.named_buffers()))
