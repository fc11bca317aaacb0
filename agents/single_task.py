"""Single-task training: a fresh model for every task; what a task is worth to a learner without a past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.events import Answer, Query, TaskStart
from clgym.head import GrowingHead
from clgym.learner import Learner, learning_rate

Kept = tuple[Tensor, GrowingHead | None]


class SingleTask(Learner):
    """LoRA on the pre-trained model, started anew at each task; the reference that knows no other task.

    No task gains or loses by another, so what it reaches on a task right after learning it is the reference of
    forward transfer (arXiv:2302.00487, eq. 5) and of the gap to a freshly started agent. Where a question says its
    task, the model of that task answers, or before the task the pre-trained one; where it does not, the newest.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 5e-4 on the tiny CLIP.
        targets: Which encoders are adapted: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="single_task-v0",
        title="Single-task training (reference)",
        family="baseline",
        departs="Not a continual learner: it keeps a model for each task, and none learns from another's.",
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 16,
        lr: float | None = None,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Put fresh adapters on the backbone; they change nothing yet."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=5e-4), ensemble=ensemble)
        self.lora = self.adapt(r=r, targets=targets)
        self.kept: list[Kept] = []

    def begin_task(self, event: TaskStart) -> None:
        """Put the last task's model away, and start with a head without classes."""
        if self.task is not None:
            self.kept.append(self._model())
            self.head = self._empty_head()
        super().begin_task(event)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Draw a fresh adapter."""
        assert self.lora is not None
        self.lora.reset(self.generator)
        return [self.lora.arena()]

    def answer(self, event: Query) -> Answer:
        """Let the model of the query's task answer, or the newest."""
        if event.task is None or event.task == len(self.kept):
            return super().answer(event)
        with self.instead(event.task):
            return super().answer(event)

    @contextmanager
    def instead(self, task: int) -> Iterator[None]:
        """Compute with the model of another task for a while; of one not learned yet, the pre-trained model."""
        assert self.lora is not None
        adapter, head = self._model()
        past = task < len(self.kept)
        self._put(self.kept[task] if past else (torch.zeros_like(adapter), self._empty_head()))
        try:
            yield
        finally:
            self._put((adapter, head))

    def _model(self) -> Kept:
        assert self.lora is not None
        return self.lora.arena().detach().clone(), self.head

    @torch.no_grad()
    def _put(self, model: Kept) -> None:
        assert self.lora is not None
        adapter, self.head = model
        self.lora.arena().copy_(adapter)
        self._text_changed()

    def _empty_head(self) -> GrowingHead | None:
        return None if self.head is None else self.head.empty()

    def footprint(self) -> Footprint:
        """Count an adapter per task as kept, and one of them at inference."""
        trainable = super().footprint().trainable
        tasks = len(self.kept) + (self.task is not None)
        return Footprint(trainable, stored=tasks * trainable, added_at_inference=trainable)

    def tensors(self) -> dict[str, Tensor]:
        """Add the adapters and heads of earlier tasks; the frozen weights never change."""
        assert self.lora is not None
        state = self.lora.named_tensors()
        for i, (adapter, head) in enumerate(self.kept):
            state[f"kept.{i}.adapter"] = adapter
            if head is not None:
                state |= {f"kept.{i}.head.{name}": rows for name, rows in head.state().items()}
        return state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the adapter of the task at hand."""
        super().restore({name: value for name, value in tensors.items() if not name.startswith("kept.")})

    def state_dict(self) -> dict[str, Any]:
        """Add the class names of earlier heads."""
        return super().state_dict() | {"kept": [[] if head is None else head.groups for _, head in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the models of earlier tasks too."""
        self.task, self.kept = None, []
        super().load_state_dict(state)
        for i, groups in enumerate(state["kept"]):
            adapter, head = state[f"tensor.kept.{i}.adapter"].to(self.device, copy=True), self._empty_head()
            if head is not None:
                mine = f"tensor.kept.{i}.head."
                rows = {name.removeprefix(mine): value for name, value in state.items() if name.startswith(mine)}
                head.restore(groups, rows)
            self.kept.append((adapter, head))
