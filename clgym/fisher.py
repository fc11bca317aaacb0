"""The diagonal Fisher information: how much a model's answers depend on each of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clgym.errors import SettingError
from clgym.tuning import Values, Weights, grouped


class Fisher:
    """The squared gradients of a loss, averaged over the last batches of each task and added up over tasks.

    A stream does not come back, so batches are looked at as they pass, at the weights of that moment. It is the
    information of batches, not of samples. EWC weighs its penalty by it (arXiv:1612.00796).

    Args:
        weights: What is trained.
        empirical: Take the true label, rather than the model's own answer.
        decay: Factor of the earlier tasks' information when a task's own is added, in [0, 1]; 0 keeps the last alone.
        share: Share of a task's last steps whose batches are looked at, in (0, 1].

    Attributes:
        importance: That of earlier tasks, by name.

    Raises:
        SettingError: A setting is out of range.
    """

    importance: Values

    def __init__(self, weights: Weights, *, empirical: bool = False, decay: float = 1.0, share: float = 0.2) -> None:
        """Start without any information."""
        if not 0 <= decay <= 1 or not 0 < share <= 1:
            raise SettingError(
                f"Expected decay in [0, 1] and fisher_share in (0, 1]; got {decay} and {share}. Try 1 and 0.2."
            )
        self.weights, self.empirical, self.decay, self.share = weights, empirical, decay, share
        self.importance, self._gathered, self._batches = weights.zeros(), weights.zeros(), 0

    def due(self, step: int, steps: int) -> bool:
        """Return whether the batch of a step, counted from 1, is among a task's last ones."""
        return step > (1 - self.share) * steps

    def observe(self, logits: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add a batch's squared gradients to the task's information.

        Args:
            logits: ``(B, C)``, with gradient.
            targets: int64 ``(B,)``, which only ``empirical`` reads.
            loss: Of logits and labels.
        """
        labels = targets if self.empirical else logits.argmax(dim=1)
        gradients = torch.autograd.grad(loss(logits, labels), self.weights.parameters)
        for name, gradient in zip(self.weights.names, gradients, strict=True):
            self._gathered[name] += gradient.square()
        self._batches += 1

    def close(self) -> None:
        """Add the task's information to that of the earlier ones."""
        mean = {name: total / max(self._batches, 1) for name, total in self._gathered.items()}
        self.importance = {name: self.decay * old + mean[name] for name, old in self.importance.items()}
        self._gathered, self._batches = self.weights.zeros(), 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the information of earlier tasks and of this one, for a checkpoint."""
        return grouped(importance=self.importance, fisher=self._gathered, batches={"": torch.tensor(self._batches)})

    def restore(self, groups: Mapping[str, dict[str, Tensor]]) -> None:
        """Take back what :meth:`tensors` returned, see :func:`clgym.tuning.regrouped`."""
        self.importance, self._gathered = groups["importance"], groups["fisher"]
        self._batches = int(groups["batches"][""])
