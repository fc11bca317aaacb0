"""Learners of closed form, which count every sample once: a second pass over sums of samples changes nothing."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from clgym.agent import Setup
from clgym.events import Train
from clgym.learner import Learner


class Once(Learner):
    """A learner of closed form: nothing is trained by gradient, and no sample enters twice.

    Args:
        setup: What is known of the stream.
        ensemble: See :class:`clgym.learner.Learner`.
    """

    def __init__(self, setup: Setup, *, ensemble: bool = True) -> None:
        """Start without samples."""
        super().__init__(setup, lr=1.0, ensemble=ensemble)
        self.shown: set[int] = set()

    @abstractmethod
    def add(self, images: Tensor, targets: Tensor) -> None:
        """Add samples that were not shown before, without gradients.

        Args:
            images: As the backbone takes them, ``(B, ...)``.
            targets: Which prompts of the task at hand each shows, int64 ``(B,)``.
        """

    @torch.no_grad()
    def learn(self, event: Train) -> None:
        """Add the samples of a batch that were not shown before."""
        ids = event.ids.tolist()
        fresh = [row for row, id in enumerate(ids) if id not in self.shown and ids.index(id) == row]
        if fresh:
            self.shown.update(ids[row] for row in fresh)
            self.add(*self.to_device(event.inputs[fresh], event.targets[fresh]))  # type: ignore[call-overload]

    def drop_samples(self, ids: Tensor) -> None:
        """Forget which samples were shown; what they added to the sums stays, since they are not kept to subtract."""
        self.shown -= set(ids.tolist())

    def tensors(self) -> dict[str, Tensor]:
        """Return the ids shown."""
        return {"shown": torch.tensor(sorted(self.shown)).long()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        self.shown = set(tensors["shown"].tolist())
