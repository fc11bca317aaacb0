"""Learners of closed form, which count every sample once: a second pass over sums of samples changes nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from clgym.agent import Setup
from clgym.events import Train
from clgym.learner import Learner


class Once(Learner):
    """A learner of closed form: nothing is trained by gradient, and no sample enters twice.

    Args:
        setup: What is known of the stream.
        options: See :class:`clgym.learner.Learner`.
    """

    def __init__(self, setup: Setup, **options: Any) -> None:
        """Start without samples."""
        super().__init__(setup, lr=1.0, **options)
        self.shown: set[int] = set()

    @abstractmethod
    def absorb(self, images: Tensor, targets: Tensor) -> None:
        """Learn from samples that were not shown before, without gradients.

        Args:
            images: As the backbone takes them, ``(B, ...)``.
            targets: Which prompts of the task at hand each shows, int64 ``(B,)``.
        """

    @torch.no_grad()
    def learn(self, event: Train) -> None:
        """Absorb the samples of a batch that were not shown before."""
        ids = event.ids.tolist()
        fresh = [row for row, id in enumerate(ids) if id not in self.shown and ids.index(id) == row]
        if fresh:
            self.shown.update(ids[row] for row in fresh)
            self.absorb(*self.to_device(event.inputs[fresh], event.targets[fresh]))  # type: ignore[call-overload]

    def drop_samples(self, ids: Tensor) -> None:
        """Forget which samples were shown; what they added to the sums stays, since they are not kept to subtract."""
        self.shown -= set(ids.tolist())

    def tensors(self) -> dict[str, Tensor]:
        """Return the ids shown."""
        return {"shown": torch.tensor(sorted(self.shown)).long()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        self.shown = set(tensors["shown"].tolist())
