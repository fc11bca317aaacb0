"""Replay: sequential LoRA that also rehearses a few stored samples of earlier tasks at every step."""

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


class Replay(Learner):
    """Experience replay from a reservoir (Chaudhry et al. 2019), on merged LoRA.

    Each step adds to the loss of the current batch that of a batch from the memory. Where the stream hides the task,
    both are classified among the classes of all tasks so far and the memory is drawn from at random; elsewhere tasks
    have label spaces of their own, and a replayed batch is of one earlier task and classified among its classes.

    Args:
        setup: What is known of the stream.
        size: Samples held in the memory.
        weight: Weight of the replayed batch's loss.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 2e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: The memory would hold nothing.
    """

    spec = AgentSpec(
        id="replay-v0",
        title="Experience replay",
        paper="arXiv:1902.10486",
        family="replay",
        departs=(
            "Where tasks have label spaces of their own, a replayed batch comes from one earlier task; the paper mixes "
            "tasks in one batch. The learner is a merged LoRA."
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
        if size < 1:
            raise SettingError(f"Expected size of 1 or more; got {size}. For no replay take sequential_lora.")
        self.weight = weight
        self.memory = SampleMemory(size, self.generator)
        self.lora = self.adapt(r=r)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        self.memory.begin_task(task.prompts)
        return [self.merge_and_renew()]

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the current batch's cross-entropy plus that of a replayed one."""
        if self._now().task is None:
            return self._loss_among_all(images, targets)
        loss = super().loss(images, targets)
        drawn = self.memory.draw(len(images), before=len(self.memory.prompts) - 1)
        if drawn is None:
            return loss
        old, labels, prompts = drawn
        return loss + self.weight * self.cross_entropy(old.to(self.device), labels.to(self.device), prompts)

    def _loss_among_all(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the same among the classes of all tasks so far, which are encoded once for both batches."""
        now, (prompts, places) = len(self.memory.prompts) - 1, self.memory.union()
        rows = self.training_rows(prompts)
        loss = F.cross_entropy(self.logits(images, rows), places[now].to(self.device)[targets])
        drawn = self.memory.draw_mixed(len(images), before=now)
        if drawn is None:
            return loss
        old, labels, _ = drawn
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
