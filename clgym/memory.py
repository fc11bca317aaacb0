"""Memories of past samples, kept as uint8 and read task by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Prompts = tuple[tuple[str, ...], ...]


class SampleMemory:
    """A reservoir: after ``n`` distinct samples, each is held with probability ``size / n`` (Vitter 1985).

    Args:
        size: Largest number of samples held; 0 holds all.
        generator: Draws what is replaced and what is read.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        """Start empty."""
        self.size, self._generator = size, generator
        self.prompts: list[Prompts] = []
        self._columns: dict[str, Tensor] = {}
        self._held = 0
        self._seen: set[int] = set()

    def __len__(self) -> int:
        """Return how many samples are held."""
        return self._held

    @property
    def sample_bytes(self) -> int:
        """Bytes of the images held."""
        return self["images"].nbytes if self._held else 0

    def __getitem__(self, name: str) -> Tensor:
        """Return ``"images"`` uint8 ``(n, ...)``, or ``"targets"``, ``"tasks"`` or ``"ids"``, int64 ``(n,)``."""
        return self._columns[name][: self._held]

    def begin_task(self, prompts: Prompts) -> None:
        """Open a task; samples added from here on belong to it."""
        self.prompts.append(prompts)

    def add(self, images: Tensor, targets: Tensor, ids: Tensor) -> None:
        """Offer a batch of the current task; a sample met before, by its id, is not offered again."""
        task = torch.tensor(len(self.prompts) - 1)
        for i, id in enumerate(ids.tolist()):
            if id in self._seen:
                continue
            place = self._held
            if self.size and self._held >= self.size:  # fewer are held than were met once some were dropped
                place = int(torch.randint(len(self._seen) + 1, (), generator=self._generator))
            self._seen.add(id)
            if not self.size or place < self.size:
                self._put(place, {"images": images[i], "targets": targets[i], "tasks": task, "ids": ids[i]})

    def _put(self, place: int, sample: dict[str, Tensor]) -> None:
        for name, value in sample.items():
            column = self._columns.get(name)
            if column is None or place >= len(column):
                grown = value.new_empty((max(64, 2 * place), *value.shape))
                if column is not None:
                    grown[: len(column)] = column
                self._columns[name] = column = grown
            column[place] = value
        self._held = max(self._held, place + 1)

    def drop(self, ids: Tensor) -> None:
        """Let go of the samples with these ids, int64 ``(n,)``, of their bytes, and of having met them."""
        self._seen -= set(ids.tolist())
        if self._held:
            kept = ~torch.isin(self["ids"], ids)
            self._columns = {name: self[name][kept] for name in self._columns}
            self._held = int(kept.sum())

    def draw(self, size: int, *, before: int | None = None) -> tuple[Tensor, Tensor, Prompts] | None:
        """Return images, targets and prompts of up to ``size`` samples of one task, or ``None`` if there are none.

        The task is drawn uniformly from those held; ``before`` leaves out it and the later ones.
        """
        if not self._held:
            return None
        tasks = self["tasks"]
        known = torch.unique(tasks)
        known = known if before is None else known[known < before]
        if not len(known):
            return None
        task = known[torch.randint(len(known), (), generator=self._generator)]
        of_task = (tasks == task).nonzero().flatten()
        chosen = of_task[torch.randperm(len(of_task), generator=self._generator)[:size]]
        return self["images"][chosen], self["targets"][chosen], self.prompts[int(task)]

    def draw_mixed(self, size: int, *, before: int | None = None) -> tuple[Tensor, Tensor, Prompts] | None:
        """Return up to ``size`` samples of all tasks mixed, classified among the classes of all tasks so far.

        Samples are drawn uniformly; ``before`` leaves out those of that task and later ones, but not the classes.
        """
        tasks = self["tasks"] if self._held else torch.empty(0, dtype=torch.int64)
        rows = torch.arange(len(tasks)) if before is None else (tasks < before).nonzero().flatten()
        if not len(rows):
            return None
        chosen = rows[torch.randperm(len(rows), generator=self._generator)[:size]]
        prompts, places = self.union()
        starts = torch.tensor([0, *(len(place) for place in places)]).cumsum(0)
        targets = torch.cat(places)[starts[tasks[chosen]] + self["targets"][chosen]]
        return self["images"][chosen], targets, prompts

    def union(self) -> tuple[Prompts, list[Tensor]]:
        """Return the classes of all tasks so far, each once, and for each task where its own are among them."""
        place: dict[tuple[str, ...], int] = {}
        for prompts in self.prompts:
            for texts in prompts:
                place.setdefault(texts, len(place))
        return tuple(place), [torch.tensor([place[texts] for texts in prompts]) for prompts in self.prompts]

    def state_dict(self) -> dict[str, Any]:
        """Return what is held, as views, and which samples have been met."""
        seen = torch.tensor(sorted(self._seen), dtype=torch.int64)
        held = {f"memory.{name}": self[name] for name in self._columns}
        return {"memory.seen": seen, "memory.prompts": list(self.prompts), **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._seen = set(state["memory.seen"].tolist())
        self.prompts = [tuple(tuple(templates) for templates in task) for task in state["memory.prompts"]]
        names = ("images", "targets", "tasks", "ids")
        self._columns = {name: state[f"memory.{name}"].clone() for name in names if f"memory.{name}" in state}
        self._held = len(self._columns["ids"]) if self._columns else 0
