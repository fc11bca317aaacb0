"""Joint training: keeps everything and trains on all of it; what a continual learner is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.memory import SampleMemory


class Joint(Learner):
    """LoRA trained on the data of all tasks so far; an upper bound, not a continual learner.

    During a task the samples are collected; at its end one adapter is trained on batches of all tasks so far. Where the
    stream hides the task, a batch mixes all samples and is classified among all classes; elsewhere it is of one task
    drawn uniformly and classified among that task's classes.

    Args:
        setup: What is known of the stream.
        effort: Optimizer steps at the end of a task, as a multiple of the task's ``Train`` events times the
            number of tasks so far; 1 gives at each end the whole budget spent until then.
        restart: Train from the pre-trained model at each end, the proper reference of intransigence; otherwise
            continue with the adapter of the last task.
        r: Rank of the adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 2e-3 on the tiny CLIP.
        batch_size: Samples of a step.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="joint-v0",
        title="Joint training (upper bound)",
        family="baseline",
        departs="Not a continual learner: it stores every sample and trains at the end of each task.",
        stores_samples=True,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        effort: float = 1.0,
        restart: bool = True,
        r: int = 16,
        lr: float | None = None,
        batch_size: int = 32,
        ensemble: bool = True,
    ) -> None:
        """Start with an empty store."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=2e-3), ensemble=ensemble)
        if effort <= 0 or batch_size < 1:
            raise SettingError(
                f"Expected effort above 0 and batch_size of 1 or more; got {effort} and {batch_size}. Try 1.0 and 32."
            )
        self.effort, self.restart, self.batch_size = effort, restart, batch_size
        self.memory = SampleMemory(0, self.generator)
        self.lora = self.adapt(r=r)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Open the task in the store; training waits for its end."""
        self.memory.begin_task(task.prompts)
        return ()

    def learn(self, event: Train) -> None:
        """Store the batch."""
        self.memory.add(*(torch.from_numpy(a) for a in (event.inputs, event.targets, event.ids)))

    def end(self) -> None:
        """Train on everything so far."""
        assert self.lora is not None
        if self.restart:
            self.lora.reset(self.generator)
        steps = max(1, round(self.effort * self._now().steps * len(self.memory.prompts)))
        self.start_optimizer([self.lora.arena()], steps)
        for _ in range(steps):
            draw = self.memory.draw_mixed if self._now().task is None else self.memory.draw
            drawn = draw(self.batch_size)
            if drawn is None:
                break
            images, targets, prompts = drawn
            self.update(self.cross_entropy(images.to(self.device), targets.to(self.device), prompts))

    def footprint(self) -> Footprint:
        """Add the stored samples."""
        return Footprint(super().footprint().trainable, sample_bytes=self.memory.sample_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Add the store."""
        return super().state_dict() | self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the store last: restoring the task opens it anew."""
        super().load_state_dict(state)
        self.memory.load_state_dict(state)
