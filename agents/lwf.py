"""Learning without Forgetting: on the new task's images, keep saying of old classes what the old model said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.distil import distillation
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, Prompts, learning_rate
from clgym.tuning import grouped, regrouped, tune_encoders

OVER = ("earlier", "current")


class LwF(Learner):
    """Learning without Forgetting (arXiv:1606.09282) for CLIP, by full fine-tuning.

    ``CE + weight * sum_k T^2 CE(softmax(y*_k / T), softmax(y_k / T))``, where ``y_k`` are the logits of the current
    images over the classes of the earlier task ``k``, and ``y*_k`` those of the model before the current task.

    Args:
        setup: What is known of the stream.
        weight: Weight of the distillation, 0 or more; higher keeps more.
        temperature: ``T``, above 0.
        over: ``"earlier"``: distil over the classes of earlier tasks, each task a softmax of its own; or
            ``"current"``: over the current task's classes, from the first task on, as ZSCL's scripts do.
        lr: Peak learning rate of AdamW; ``None`` is 1e-5 on a real model and 1e-3 on the tiny CLIP.
        warmup: Share of a task's steps with rising learning rate.
        label_smoothing: Of the cross-entropy.
        targets: Which encoders are trained: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="lwf-v0",
        title="Learning without Forgetting",
        paper="arXiv:1606.09282",
        code="github.com/Thunderbeee/ZSCL@08c6ef6",
        family="regularisation",
        departs=(
            "Class scores come from CLIP's text encoder, which is trained too, not from heads; the paper's warm-up of "
            "a new head has no counterpart. Optimizer and schedule are ZSCL's. ZSCL's scripts for its LwF row distil "
            "over the current classes with the old model's text features, over images given texts and over texts "
            "given images: over='current'. What they further do under --fair (ImageNet images) is left out. All of "
            "CLIP but the logit scale is trained, 149.6M parameters of ViT-B/16; tables print 129.6M."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 1.0,
        temperature: float = 2.0,
        over: str = "earlier",
        lr: float | None = None,
        warmup: float = 0.1,
        label_smoothing: float = 0.2,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Free the encoders."""
        super().__init__(
            setup,
            lr=learning_rate(lr, setup, real=1e-5, tiny=1e-3),
            warmup=warmup,
            label_smoothing=label_smoothing,
            ensemble=ensemble,
        )
        if weight < 0 or temperature <= 0:
            raise SettingError(
                f"Expected weight of 0 or more and temperature above 0; got {weight} and {temperature}. Try 1 and 2."
            )
        if over not in OVER:
            raise SettingError(f"Expected over to be one of {OVER}; got {over!r}. Choose one of these.")
        self.weight, self.temperature, self.over = weight, temperature, over
        self.weights = tune_encoders(self.backbone.model, targets)
        self.text_trains = targets != "vision"
        self.before: dict[str, Tensor] = {}
        self.earlier: list[Prompts] = []
        self._texts_before: Sequence[Tensor] = ()

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Keep the model before the task."""
        self.before, self._texts_before = self.weights.copy(), ()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy and the distillation from the model before the task."""
        texts = self.training_rows(self._now().prompts)
        z = self.backbone.encode_images(images)  # (B, d)
        loss = F.cross_entropy(self.classify(z, texts), targets, label_smoothing=self.label_smoothing)
        heads = self.earlier if self.over == "earlier" else [self._now().prompts]
        if not heads or not self.weight:
            return loss
        with self.weights.replaced(self.before):
            old = self.backbone.encode_images(images)  # (B, d)
            if not self._texts_before:
                self._texts_before = [self.fresh_rows(p, ensemble=False) for p in heads]
        teacher = [self.classify(old, t) for t in self._texts_before]  # one (B, C_k) a task
        if self.over == "current":
            logits = self.classify(z, self._texts_before[0])  # (B, C)
            return loss + self.weight * (self._kd(logits, teacher[0]) + self._kd(logits.T, teacher[0].T))
        every = self.earlier_rows(tuple(classes for prompts in heads for classes in prompts))
        student = torch.split(self.classify(z, every), [len(prompts) for prompts in heads], dim=1)
        return loss + self.weight * torch.stack([self._kd(s, t) for s, t in zip(student, teacher, strict=True)]).sum()

    def _kd(self, student: Tensor, teacher: Tensor) -> Tensor:
        return distillation(student, teacher, self.temperature)

    def end(self) -> None:
        """Count the task among the earlier ones."""
        self.earlier.append(self._now().prompts)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, and those before the task."""
        return grouped(weight=self.weights.views(), before=self.before)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back both."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before, self._texts_before = groups["before"], ()

    def state_dict(self) -> dict[str, Any]:
        """Add the prompts of earlier tasks."""
        return super().state_dict() | {"earlier": list(self.earlier)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the prompts of earlier tasks too."""
        super().load_state_dict(state)
        self.earlier = [tuple(tuple(templates) for templates in prompts) for prompts in state["earlier"]]

    def footprint(self) -> Footprint:
        """Count the trained weights and the copy that teaches."""
        return Footprint(trainable=self.weights.count, stored=self.weights.count)
