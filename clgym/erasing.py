"""How a continual learner without an answer of its own meets a request to forget: it drops samples and trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from clgym.boxes import renumbered
from clgym.events import Erase, EraseEnd, EraseRequest, TaskEnd, TaskStart, Train
from clgym.memory import SampleMemory


class Student(Protocol):
    """What is needed of a learner; :class:`clgym.learner.Learner` has it."""

    def drop_samples(self, ids: torch.Tensor) -> None:
        """Let go of stored samples, and of their ids."""

    def begin_task(self, event: TaskStart) -> None:
        """Prepare for a task."""

    def learn(self, event: Train) -> None:
        """Learn from one batch."""

    def end_task(self, event: TaskEnd) -> None:
        """Put a task away."""


class RetainFinetune:
    """The default answer: stored samples of the request go at once, and what may be read to retain is one more task.

    The task has the classes met so far except those of which nothing is to remain, so that these are neither taught nor
    pushed away. Without retained data there is no task, and nothing but the memory changes. Samples to forget are never
    looked at. The method's own way to learn does the rest: its adapters, its regularisers, its rehearsal.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.gone: list[str] = []
        self.teaching = False

    def begin(self, learner: Student, event: EraseRequest) -> None:
        """Drop what is stored of the request's samples; a request to relearn welcomes its classes again."""
        if event.kind == "relearn":
            self.gone = [name for name in self.gone if name not in event.classes]
            return
        learner.drop_samples(torch.from_numpy(event.ids))
        self.gone += [name for name in event.classes if name not in self.gone]

    def erase(self, learner: Student, event: Erase) -> None:
        """Train on the batch to retain, if there is one."""
        if event.retain is None:
            return
        kept = [i for i, name in enumerate(event.classes) if name not in self.gone]
        if not self.teaching:
            self.teaching = True
            names, prompts = tuple(event.classes[i] for i in kept), tuple(event.prompts[i] for i in kept)
            samples = event.steps * len(event.retain.inputs)
            learner.begin_task(TaskStart(None, "", "", names, prompts, samples, event.steps - event.step))
        place = np.full(len(event.classes), -1)
        place[kept] = np.arange(len(kept))
        targets: Any = event.retain.targets
        boxed = targets.ndim == 3
        learner.learn(replace(event.retain, targets=renumbered(targets, place) if boxed else place[targets]))

    def end(self, learner: Student, event: EraseEnd) -> None:
        """Put the task away, if there was one."""
        del event
        if self.teaching:
            self.teaching = False
            learner.end_task(TaskEnd(None))

    def state_dict(self) -> dict[str, Any]:
        """Return which classes are gone, and whether a task of retained samples is going on."""
        return {"gone": list(self.gone), "retaining": self.teaching}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.gone, self.teaching = list(state["gone"]), state["retaining"]


def drop_from(memory: object, ids: torch.Tensor) -> None:
    """Let a sample memory go of these ids, int64 ``(n,)``; whoever keeps samples in anything else drops them itself."""
    if isinstance(memory, SampleMemory):
        memory.drop(ids)
