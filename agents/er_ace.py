"""ER-ACE: new classes learn among themselves only, and the memory alone sets them against the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.memory import SampleMemory


class ERACE(Learner):
    """Experience replay with an asymmetric cross-entropy (ER-ACE, arXiv:2104.05025), on merged LoRA.

    ``CE(x, y | classes of the batch) + weight * CE(x', y' | all classes)``, where ``x'`` is drawn from a reservoir
    over everything shown so far, the current task included. So a new batch never pushes classes away that are
    not in it. Where the stream hides the task, all classes are those of all tasks so far and the memory is drawn
    from at random; elsewhere tasks have label spaces of their own, and a replayed batch is of one task and
    classified among its classes.

    Args:
        setup: What is known of the stream.
        size: Samples held in the memory.
        weight: Weight of the replayed batch's loss.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 2e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="er_ace-v0",
        title="Experience replay with asymmetric cross-entropy",
        paper="arXiv:2104.05025",
        code="github.com/pclucas14/AML@0c183e9",
        family="replay",
        departs=(
            "The code also leaves classes that are yet to come among those of the new batch; here they are not known. "
            "Where tasks have label spaces of their own, a replayed batch is of one task, drawn uniformly; the paper "
            "mixes tasks. A sample is offered to the memory once, as the paper's single pass does. The learner is a "
            "merged LoRA."
        ),
        stores_samples=True,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        size: int = 200,
        weight: float = 1.0,
        r: int = 16,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start with an empty memory."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=2e-3), ensemble=ensemble)
        if size < 1 or weight < 0:
            raise SettingError(
                f"Expected size of 1 or more and weight of 0 or more; got {size} and {weight}. Try 200 and 1."
            )
        self.weight = weight
        self.memory = SampleMemory(size, self.generator)
        self.lora = self.adapt(r=r)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        self.memory.begin_task(task.prompts)
        return [self.merge_and_renew()]

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the current batch's loss among its own classes, and the replayed one's among all."""
        hidden, prompts = self._now().task is None, self._now().prompts
        if hidden:
            prompts, places = self.memory.union()
            targets = places[-1].to(self.device)[targets]
        rows = self.training_rows(prompts)
        loss = F.cross_entropy(*among_present(self.logits(images, rows), targets))
        drawn = self.memory.draw_mixed(len(images)) if hidden else self.memory.draw(len(images))
        if drawn is None:
            return loss
        old, labels, prompts = drawn
        rows = rows if hidden else self.training_rows(prompts)
        replayed = F.cross_entropy(self.logits(old.to(self.device), rows), labels.to(self.device))
        return loss + self.weight * replayed

    def learn(self, event: Train) -> None:
        """Take one step, then offer the batch to the memory."""
        super().learn(event)
        self.memory.add(*(torch.from_numpy(a) for a in (event.inputs, event.targets, event.ids)))

    def footprint(self) -> Footprint:
        """Add the stored samples."""
        return Footprint(super().footprint().trainable, sample_bytes=self.memory.sample_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Add the memory."""
        return super().state_dict() | self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the memory last: restoring the task opens it anew."""
        super().load_state_dict(state)
        self.memory.load_state_dict(state)


def among_present(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets among the classes alone that a batch has samples of.

    >>> logits, targets = among_present(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([2, 0]))
    >>> logits.tolist(), targets.tolist()
    ([[1.0, 3.0], [4.0, 6.0]], [1, 0])
    """
    present, targets = torch.unique(targets, return_inverse=True)
    return logits[:, present], targets
