"""Retraining: on request start anew, without the erased samples; exact, and as dear as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.counterfactual import without
from clgym.events import Erase, EraseEnd, EraseRequest, Event, TaskEnd, TaskStart, Train
from clgym.learner import Learner, learning_rate


class Retrain(Learner):
    """Keeps every batch; at a request takes the pre-trained model and learns all again as if the data had never come.

    The result is, bit for bit, the agent with the same seed on the counterfactual stream: what erasure is measured
    against. Until the first request it is the same model as the other methods made to forget.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="retrain-v0",
        title="Retraining (exact)",
        family="baseline",
        departs=(
            "Not a continual learner: it stores the whole stream, and a request costs as much as all learning until "
            "then. It needs no data from the request."
        ),
        stores_samples=True,
    )

    def __init__(self, setup: Setup, *, r: int = 8, lr: float | None = None, ensemble: bool = True) -> None:
        """Start with nothing kept."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=1e-3), ensemble=ensemble)
        self.settings: dict[str, Any] = {"r": r, "lr": lr, "ensemble": ensemble}
        self.lora = self.adapt(r=r)
        self.kept: list[Event] = []
        self.named: dict[int, Tensor] = {}  # a request that is open, to the ids that it names

    def begin_task(self, event: TaskStart) -> None:
        """Keep the event, but for one that a restored state brings back."""
        self.kept.append(event)
        super().begin_task(event)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        return [self.merge_and_renew()]

    def learn(self, event: Train) -> None:
        """Keep the batch and take one step."""
        self.kept.append(event)
        super().learn(event)

    def end_task(self, event: TaskEnd) -> None:
        """Keep the event and put the task away."""
        self.kept.append(event)
        super().end_task(event)

    def begin_erasure(self, event: EraseRequest) -> None:
        """Note which samples must go; until the request is due they stay."""
        self.named[event.request] = torch.from_numpy(event.ids.copy())

    def erase(self, event: Erase) -> None:
        """Look at nothing: all that is needed is kept."""

    def end_erasure(self, event: EraseEnd) -> None:
        """Learn everything again without the samples, if any of them was kept, and let go of them."""
        ids = self.named.pop(event.request).numpy()
        if not any(np.isin(kept.ids, ids).any() for kept in self.kept if isinstance(kept, Train)):
            return
        again = Retrain(self.setup, **self.settings)
        for kept in without(self.kept, ids.tolist()):
            again.act(kept)
        self.task = None  # there is none if nothing is left
        self.load_state_dict(again.state_dict() | self._open())

    def _open(self) -> dict[str, Tensor]:
        return {f"named.{request}": ids for request, ids in self.named.items()}

    def footprint(self) -> Footprint:
        """Add the stored samples, as often as they were shown."""
        kept = sum(np.asarray(event.inputs).nbytes for event in self.kept if isinstance(event, Train))
        return Footprint(super().footprint().trainable, sample_bytes=kept)

    def state_dict(self) -> dict[str, Any]:
        """Add the events kept and the requests open."""
        batches = [event for event in self.kept if isinstance(event, Train)]
        order = [
            [getattr(event, field.name) for field in fields(event)] if not isinstance(event, Train) else len(event.ids)
            for event in self.kept
        ]
        columns = {
            name: torch.from_numpy(np.concatenate([np.asarray(getattr(batch, name)) for batch in batches]))
            for name in ("inputs", "targets", "ids")
            if batches
        }
        return super().state_dict() | {"order": order} | {f"kept.{n}": c for n, c in columns.items()} | self._open()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the events last: restoring the task keeps its own."""
        super().load_state_dict(state)
        columns = [
            torch.as_tensor(state[f"kept.{name}"]).numpy()
            for name in ("inputs", "targets", "ids")
            if "kept.ids" in state
        ]
        self.kept, row = [], 0
        for entry in state["order"]:
            if isinstance(entry, int):
                self.kept.append(Train(*(column[row : row + entry] for column in columns)))
                row += entry
            elif len(entry) == 1:
                self.kept.append(TaskEnd(*entry))
            else:
                task, name, text, classes, prompts, samples, steps, noted = entry
                words = tuple(tuple(templates) for templates in prompts)
                self.kept.append(TaskStart(task, name, text, tuple(classes), words, samples, steps, tuple(noted)))
        self.named = {int(key[6:]): torch.as_tensor(ids) for key, ids in state.items() if key.startswith("named.")}
