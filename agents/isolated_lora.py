"""Isolated LoRA: one adapter for each task, which a request takes away; exact by construction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.events import Erase, EraseEnd, EraseRequest, TaskEnd, TaskStart, Train
from clgym.head import UNMET, GrowingHead
from clgym.learner import Learner, Prompts, learning_rate
from clgym.seeds import agent_seed


@dataclass(slots=True)
class Unit:
    """What was learned from one task and nothing else.

    Attributes:
        names: First prompts of its classes.
        adapter: The flat adapter.
        rows: The classes' rows of the head, ``(C, d + 1)``; on CLIP ``(0, 0)``.
        ids: Ids of the samples that it learned from, int64, ascending.
    """

    names: list[str]
    adapter: Tensor
    rows: Tensor
    ids: Tensor


class IsolatedLoRA(Learner):
    """An adapter on the frozen image encoder for each task, learned apart from all others (after arXiv:2406.16257).

    Every unit starts from the same draw on the pre-trained model, so that it depends on its own samples alone. A
    request drops the units that learned from any of its samples, and with them all that the samples changed: after a
    request for a task the agent is, bit for bit, the one that never had the task. Where only a part of a unit must
    go, a new unit is learned from those of its samples that may be read to retain.

    A class is judged by the units that have it, by their mean logit if there are several; one that none has by the
    frozen CLIP, or not at all.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 2e-3 on a tiny one.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="isolated_lora-v0",
        title="Isolated LoRA (exact)",
        paper="arXiv:2406.16257",
        family="architecture",
        departs=(
            "A unit is a task; the paper slices a task, trains slices in sequences and drops what follows the slice. "
            "No code was read. A unit of which a part must go is learned anew from granted samples, which may be fewer."
        ),
        mergeable=False,
    )

    def __init__(self, setup: Setup, *, r: int = 8, lr: float | None = None, ensemble: bool = True) -> None:
        """Start without units."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=2e-3), ensemble=ensemble)
        self.lora = self.adapt(r=r, targets="vision")
        self.units: list[Unit] = []
        self.named: dict[int, Tensor] = {}  # a request that is open, to the ids that it names
        self.left = torch.empty(0, dtype=torch.int64)  # ids that units lost in a phase and may learn again
        self.met: set[int] = set()  # ids of the unit that is learned now

    def begin_task(self, event: TaskStart) -> None:
        """Start a unit that knows nothing of the others."""
        self.generator.manual_seed(agent_seed(self.setup.seed))
        self._clear()
        super().begin_task(event)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Train the fresh adapter."""
        assert self.lora is not None
        self.lora.reset(self.generator)
        return [self.lora.arena()]

    def learn(self, event: Train) -> None:
        """Note the samples and take one step."""
        self.met |= set(event.ids.tolist())
        super().learn(event)

    def end(self) -> None:
        """Put the unit away."""
        self.units.append(self._now_unit())
        self._clear()

    def _now_unit(self) -> Unit:
        assert self.lora is not None
        names = [texts[0] for texts in self._now().prompts]
        rows = torch.empty(0, 0) if self.head is None else self.head.rows(names).detach().clone()
        return Unit(names, self.lora.arena().detach().clone(), rows, torch.tensor(sorted(self.met), dtype=torch.int64))

    def _clear(self) -> None:
        """Leave nothing of the last unit where the next begins."""
        assert self.lora is not None
        self.lora.arena().detach().zero_()
        self.met = set()
        if self.head is not None:
            self.head = GrowingHead(self.backbone.embed_dim, self.device)

    def begin_erasure(self, event: EraseRequest) -> None:
        """Note which samples must go; until the request is due they stay."""
        super().begin_erasure(event)
        self.named[event.request] = torch.from_numpy(event.ids.copy())

    def erase(self, event: Erase) -> None:
        """Drop the units at once; learn from those of their samples that come to be retained."""
        if event.step == 0:
            lost = self._drop(event.requests)
            self.left = torch.cat([unit.ids for unit in lost] or [self.left])
            self.left = self.left[~torch.isin(self.left, torch.cat([self.named[r] for r in event.requests]))]
            names = {name for unit in lost for name in unit.names}
            kept = [
                c
                for c, texts in enumerate(event.prompts)
                if texts[0] in names and event.classes[c] not in self.erasing.gone
            ]
            if kept and len(self.left) and event.retain is not None:
                self.erasing.teaching = True
                classes, prompts = tuple(event.classes[c] for c in kept), tuple(event.prompts[c] for c in kept)
                self.begin_task(TaskStart(None, "", "", classes, prompts, len(self.left), event.steps))
        if self.erasing.teaching and event.retain is not None:
            self._relearn(event, event.retain)

    def _relearn(self, event: Erase, retain: Train) -> None:
        rows = np.isin(retain.ids, self.left.numpy())
        place = {name: c for c, name in enumerate(self._now().classes)}
        assert isinstance(retain.inputs, np.ndarray)
        assert isinstance(retain.targets, np.ndarray)
        targets = np.array([place.get(event.classes[c], -1) for c in retain.targets.tolist()], np.int64)
        rows &= targets >= 0
        if rows.any():
            self.learn(replace(retain, inputs=retain.inputs[rows], targets=targets[rows], ids=retain.ids[rows]))

    def end_erasure(self, event: EraseEnd) -> None:
        """Drop the units if there was no phase, and put a unit that was learned in one away."""
        self._drop((event.request,))
        del self.named[event.request]
        self.left = self.left[:0]
        if self.erasing.teaching:
            self.erasing.teaching = False
            if self.met:
                self.end_task(TaskEnd(None))
            else:
                self.optimizer = None
                self._clear()

    def _drop(self, requests: Sequence[int]) -> list[Unit]:
        """Let go of the units that learned from samples of these requests, and return them."""
        ids = torch.cat([self.named[request] for request in requests])
        lost = [unit for unit in self.units if torch.isin(unit.ids, ids).any()]
        self.units = [unit for unit in self.units if not torch.isin(unit.ids, ids).any()]
        return lost

    def answering_logits(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Return logits ``(B, C)``, each of the mean unit that has the class."""
        names = [texts[0] for texts in prompts]
        total, count = torch.zeros(len(images), len(names), device=self.device), torch.zeros(len(names))
        for unit in [*self.units, *([self._now_unit()] if self.optimizer is not None else [])]:
            mine = [c for c, name in enumerate(names) if name in unit.names]
            if mine:
                with self._acting(unit.adapter):
                    rows = self._rows(unit, tuple(prompts[c] for c in mine))
                    total[:, mine] += self.logits(images, rows).float()
                count[mine] += 1
        if not bool((alone := count == 0).any()):
            return total / count.to(self.device)
        if self.head is not None:
            total[:, alone] = UNMET
        else:
            with self._acting(torch.zeros(1, device=self.device)):
                others = tuple(texts for texts, is_alone in zip(prompts, alone.tolist(), strict=True) if is_alone)
                total[:, alone] = self.logits(images, self.class_rows(others, self.ensemble)).float()
        return total / count.clamp(min=1).to(self.device)

    def _rows(self, unit: Unit, prompts: Prompts) -> Tensor:
        if self.head is None:
            return self.class_rows(prompts, self.ensemble)
        return unit.rows[[unit.names.index(texts[0]) for texts in prompts]]

    @contextmanager
    def _acting(self, adapter: Tensor) -> Iterator[None]:
        """Compute with an adapter for a while."""
        assert self.lora is not None
        arena = self.lora.arena().detach()
        mine = arena.clone()
        arena.copy_(adapter)
        try:
            yield
        finally:
            arena.copy_(mine)

    def footprint(self) -> Footprint:
        """Count the adapters of all units."""
        kept = sum(unit.adapter.numel() for unit in self.units)
        return Footprint(super().footprint().trainable, stored=kept, added_at_inference=kept)

    def state_dict(self) -> dict[str, Any]:
        """Add the units, the unit being learned and the requests open."""
        state = super().state_dict() | {"units": [unit.names for unit in self.units], "left": self.left}
        for i, unit in enumerate(self.units):
            state |= {f"unit.{i}.adapter": unit.adapter, f"unit.{i}.rows": unit.rows, f"unit.{i}.ids": unit.ids}
        state |= {f"named.{request}": ids for request, ids in self.named.items()}
        return state | {"met": torch.tensor(sorted(self.met), dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the head's rows once more: restoring the task draws its own."""
        super().load_state_dict(state)
        if self.head is not None:
            rows = {key.removeprefix("head."): value for key, value in state.items() if key.startswith("head.")}
            with torch.no_grad():
                for name, block in self.head.state().items():
                    if name in rows:
                        block.copy_(rows[name])
            if not rows:
                self.head = GrowingHead(self.backbone.embed_dim, self.device)
        self.units = [
            Unit(list(names), *(torch.as_tensor(state[f"unit.{i}.{part}"]) for part in ("adapter", "rows", "ids")))
            for i, names in enumerate(state["units"])
        ]
        self.named = {int(key[6:]): torch.as_tensor(ids) for key, ids in state.items() if key.startswith("named.")}
        self.left, self.met = torch.as_tensor(state["left"]), set(torch.as_tensor(state["met"]).tolist())
