"""What methods made to forget share: at a request, a phase of steps down a loss on what may be read for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clgym.agent import Footprint, Setup
from clgym.attention import lora_targets, part_of
from clgym.errors import SettingError
from clgym.events import Erase, EraseEnd, TaskStart, Train
from clgym.learner import Learner, learning_rate

Batch: TypeAlias = tuple[Tensor, Tensor]  # uint8 (B, H, W, 3) and int64 (B,), on the device


class Eraser(Learner):
    """Learns tasks by merged LoRA, as Sequential LoRA does, and forgets in a phase of its own.

    A phase has a fresh adapter, of which the part on the image encoder is trained, and ends with a merge. What classes
    are compared with, CLIP's texts or a head's rows, stays as it is: to unlearn is to change the features. Labels of
    both batches are among all classes met so far, those that are gone too. Stored samples of a request go at once, as
    in :class:`clgym.erasing.RetainFinetune`.

    A subclass fills in :meth:`erasure_loss`, and may override :meth:`begin_phase` and :meth:`end_phase`. All have the
    same settings for learning, so that they are the same model until the first request.

    Args:
        setup: What is known of the stream.
        erase_lr: Peak learning rate of AdamW in a phase, which falls to 0 along a cosine.
        erase_decay: AdamW's weight decay in a phase.
        layers: Last parts of the names of the linears that a phase trains, such as ``("fc1",)``; none means all six.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        erase_lr: float,
        erase_decay: float = 0.0,
        layers: Sequence[str] = (),
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Put adapters on both encoders."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=1e-3), ensemble=ensemble)
        if erase_lr <= 0:
            raise SettingError(f"Expected erase_lr above 0; got {erase_lr}. Try 1e-3.")
        self.rates, self.decays = (self.lr, erase_lr), (0.0, erase_decay)
        self.lora = self.adapt(r=r)
        names = lora_targets(self.backbone.model, "vision")
        self.trained = {name for name in names if not layers or part_of(name) in layers}
        self.in_phase = False

    @abstractmethod
    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss of a step of a phase, or ``None`` if what was granted leaves nothing to do."""

    def begin_phase(self) -> None:
        """Prepare for the steps of a phase; the adapter is fresh, ``self.steps`` says how many come."""

    def end_phase(self) -> None:
        """Act before the adapter of a phase is merged."""

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Draw a fresh adapter for a task or, its image part alone, for a phase."""
        assert self.lora is not None
        self.lr, self.weight_decay = self.rates[self.in_phase], self.decays[self.in_phase]
        self.head_share, self.text_trains = float(not self.in_phase), not self.in_phase
        arena = self.merge_and_renew()
        for name, layer in self.lora.layers:
            for leaf in (layer.A, layer.Bt):
                leaf.requires_grad_(not self.in_phase or name in self.trained)
        return [arena]

    def erase(self, event: Erase) -> None:
        """Take one step."""
        if event.step == 0:
            self.in_phase = True
            self.begin_task(TaskStart(None, "", "", event.classes, event.prompts, 0, event.steps))
            self.begin_phase()
        with self.autocast:
            loss = self.erasure_loss(self._batch(event.forget), self._batch(event.retain))
        if loss is not None:
            self.update(loss)

    def end_erasure(self, event: EraseEnd) -> None:
        """Merge the phase's adapter, at the end of the first request that it served."""
        super().end_erasure(event)
        if self.in_phase:
            assert self.lora is not None
            self.end_phase()
            self.lora.merge_()
            self.in_phase, self.optimizer = False, None

    def _batch(self, granted: Train | None) -> Batch | None:
        return None if granted is None else self.to_device(granted.inputs, granted.targets)

    @property
    def rows(self) -> Tensor:
        """What classes are compared with in a phase, ``(C, d)`` or ``(C, d + 1)``, without gradient."""
        return self.class_rows(self._now().prompts, ensemble=False)

    def ce(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch over all classes met so far, or a detector's set loss."""
        images, targets = batch
        return self.against_labels(self.logits(images, self.rows), targets)

    def before(self, images: Tensor) -> Tensor:
        """Return features ``(B, d)`` of the model as it was when the phase began, without gradient."""
        assert self.lora is not None
        with torch.no_grad(), self.lora.put_aside():
            return self.encode(images)

    def other_labels(self, targets: Tensor) -> Tensor:
        """Draw for each label ``(B,)`` another one, uniformly among the classes of which something is to remain."""
        names = self._now().classes
        staying = torch.tensor([c for c, name in enumerate(names) if name not in self.erasing.gone])
        chances = torch.zeros(len(targets), len(names))
        chances[:, staying] = 1.0
        chances[torch.arange(len(targets)), targets.cpu()] = 0.0
        return chances.multinomial(1, generator=self.generator).squeeze(1).to(self.device)

    def footprint(self) -> Footprint:
        """Count what is trained now: the whole adapter, or in a phase a part of it."""
        assert self.lora is not None
        if not self.in_phase:
            return super().footprint()
        return Footprint(trainable=sum(p.numel() for p in self.lora.parameters() if p.requires_grad))

    def state_dict(self) -> dict[str, Any]:
        """Add whether a phase is going on."""
        return super().state_dict() | {"in_phase": self.in_phase}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back first: it decides what the optimizer has."""
        self.in_phase = state["in_phase"]
        super().load_state_dict(state)
