"""Memories of past samples, kept as uint8 and read task by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Prompts = tuple[tuple[str, ...], ...]


class SampleMemory:
    """A reservoir: after ``n`` distinct samples, each is held with probability ``size / n`` (Vitter 1985).

    Args:
        size: Largest number of samples held; 0 holds all.
        generator: Draws what is replaced and what is read.
        distinct: Offer a sample once, however often it is shown; otherwise at each showing, as one more sample.
    """

    def __init__(self, size: int, generator: torch.Generator, *, distinct: bool = True) -> None:
        """Start empty."""
        self.size, self._generator, self.distinct = size, generator, distinct
        self.prompts: list[Prompts] = []
        self._columns: dict[str, Tensor] = {}
        self._held = self._offered = 0
        self._seen: set[int] = set()

    def __len__(self) -> int:
        """Return how many samples are held."""
        return self._held

    @property
    def sample_bytes(self) -> int:
        """Bytes of the images held."""
        return self["images"].nbytes if self._held else 0

    def __getitem__(self, name: str) -> Tensor:
        """Return ``"images"`` uint8 ``(n, ...)``, ``"targets"``, ``"tasks"`` or ``"ids"`` int64 ``(n,)``, or more."""
        return self._columns[name][: self._held]

    def begin_task(self, prompts: Prompts) -> None:
        """Open a task; samples added from here on belong to it."""
        self.prompts.append(prompts)

    def add(self, images: Tensor, targets: Tensor, ids: Tensor, **extras: Tensor) -> None:
        """Offer a batch of the current task.

        Args:
            images: uint8 ``(B, ...)``.
            targets: int64 ``(B,)``.
            ids: int64 ``(B,)``.
            **extras: What else is to be held of each sample, ``(B, ...)``, under names of its own.
        """
        batch = {"images": images, "targets": targets, "ids": ids, **extras}
        task = torch.tensor(len(self.prompts) - 1)
        for i, id in enumerate(ids.tolist()):
            if self.distinct and id in self._seen:
                continue
            place = self._held
            if self.size and self._held >= self.size:  # fewer are held than were met once some were dropped
                place = int(torch.randint(self._offered + 1, (), generator=self._generator))
            self._offered += 1
            if self.distinct:
                self._seen.add(id)
            if not self.size or place < self.size:
                self._put(place, {name: values[i] for name, values in batch.items()} | {"tasks": task})

    def widen(self, name: str, width: int) -> None:
        """Fill the rows of an extra ``(n, w)`` up with NaN to ``width`` columns, if it is held already."""
        if name in self._columns:
            column = self._columns[name]
            self._columns[name] = F.pad(column, (0, width - column.shape[1]), value=torch.nan)

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
        chosen = self.rows(size, before=before)
        if not len(chosen):
            return None
        return self["images"][chosen], self["targets"][chosen], self.prompts[int(self["tasks"][chosen[0]])]

    def draw_mixed(self, size: int, *, before: int | None = None) -> tuple[Tensor, Tensor, Prompts] | None:
        """Return up to ``size`` samples of all tasks mixed, classified among the classes of all tasks so far.

        Samples are drawn uniformly; ``before`` leaves out those of that task and later ones, but not the classes.
        """
        chosen = self.rows(size, before=before, mixed=True)
        return (self["images"][chosen], *self.among_all(chosen)) if len(chosen) else None

    def rows(self, size: int, *, before: int | None = None, mixed: bool = False) -> Tensor:
        """Draw up to ``size`` rows of the columns, int64; see :meth:`draw` or, if ``mixed``, :meth:`draw_mixed`."""
        tasks = self["tasks"] if self._held else torch.empty(0, dtype=torch.int64)
        among = tasks < (len(self.prompts) if before is None else before)
        if not mixed and among.any():
            known = torch.unique(tasks[among])
            among = tasks == known[torch.randint(len(known), (), generator=self._generator)]
        found = among.nonzero().flatten()
        if not len(found):
            return found
        return found[torch.randperm(len(found), generator=self._generator)[:size]]

    def among_all(self, rows: Tensor) -> tuple[Tensor, Prompts]:
        """Return the targets of some rows among the classes of all tasks so far, and those classes."""
        prompts, places = self.union()
        starts = torch.tensor([0, *(len(place) for place in places)]).cumsum(0)
        return torch.cat(places)[starts[self["tasks"][rows]] + self["targets"][rows]], prompts

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
        held = {f"memory.held.{name}": self[name] for name in self._columns}
        return {"memory.seen": seen, "memory.offered": self._offered, "memory.prompts": list(self.prompts), **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._seen, self._offered = set(state["memory.seen"].tolist()), state["memory.offered"]
        self.prompts = [tuple(tuple(templates) for templates in task) for task in state["memory.prompts"]]
        prefix = "memory.held."
        held = [key for key in state if key.startswith(prefix)]
        self._columns = {key.removeprefix(prefix): state[key].clone() for key in held}
        self._held = len(self._columns["ids"]) if self._columns else 0
