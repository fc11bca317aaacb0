"""PredKD: keep the predictions over earlier classes on the new task's images, with or without other terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.distil import distillation, feature_distance
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, Prompts, learning_rate
from clgym.tuning import grouped, regrouped, tune_attention


class PredKD(Learner):
    """Prediction distillation on the query, key and value projections (Rehearsal-Free, arXiv:2203.17269).

    ``CE + weight * CE(p*(. | x), p(. | x))`` on the current images, where ``p`` is restricted to the classes of all
    earlier tasks together and ``p*`` is the model before the task. The paper combines it with
    ``l2 * sum_j (theta_j - theta*_j)^2`` and ``feat * |h(x) - h*(x)|^2``. Only projections of the image encoder are
    trained.

    Args:
        setup: What is known of the stream.
        weight: Weight of the distillation, 0 or more; higher keeps more.
        l2: Weight of the distance of the weights to those before the task; 0 is without.
        feat: Weight of the distance of the image features to those before the task; 0 is without.
        temperature: Of both distributions, above 0; the loss is multiplied by its square.
        targets: Which linear layers of the image encoder are trained.
        lr: Peak learning rate of AdamW; ``None`` is 5e-5 on a real model and 3e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        NotRegisteredError: A target is no layer.
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="pred_kd-v0",
        title="Prediction distillation",
        paper="arXiv:2203.17269",
        family="regularisation",
        departs=(
            "The softmax form, which is CLIP's own; the paper's choice, a sigmoid per class, is left out, and so is "
            "the combination with EWC. The classifier is CLIP's frozen text encoder, not a head; projections are "
            "trained as three matrices, biases fixed. The paper's own code was not found; weights and learning rate "
            "are not the paper's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 1.0,
        l2: float = 0.0,
        feat: float = 0.0,
        temperature: float = 1.0,
        targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Free the projections."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=5e-5, tiny=3e-3), ensemble=ensemble)
        if min(weight, l2, feat) < 0 or temperature <= 0:
            raise SettingError(
                f"Expected weight, l2 and feat of 0 or more and temperature above 0; got {weight}, {l2}, {feat} and "
                f"{temperature}. Try 1, 0, 0 and 1."
            )
        self.weight, self.l2, self.feat, self.temperature = weight, l2, feat, temperature
        self.weights = tune_attention(self.backbone.model, targets)
        self.before: dict[str, Tensor] = {}
        self.earlier: Prompts = ()

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Keep the model before the task."""
        self.before = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, the distillation and what it is combined with."""
        z = self.backbone.encode_images(images)  # (B, d)
        loss = F.cross_entropy(self.classify(z, self.training_rows(self._now().prompts)), targets)
        if self.l2:
            loss = loss + self.l2 * self.weights.distance(self.before)
        if not self.feat and not self.earlier:
            return loss
        with self.weights.replaced(self.before):
            old = self.backbone.encode_images(images)
        if self.feat:
            loss = loss + self.feat * feature_distance(z, old)
        if self.earlier:
            rows = self.earlier_rows(self.earlier)
            student, teacher = self.classify(z, rows), self.classify(old, rows)  # (B, earlier classes)
            loss = loss + self.weight * distillation(student, teacher, self.temperature)
        return loss

    def end(self) -> None:
        """Count the task's classes among the earlier ones."""
        self.earlier += self._now().prompts

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, and those before the task."""
        return grouped(weight=self.weights.views(), before=self.before)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back both."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before = groups["before"]

    def state_dict(self) -> dict[str, Any]:
        """Add the prompts of earlier classes."""
        return super().state_dict() | {"earlier": self.earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the prompts of earlier classes too."""
        super().load_state_dict(state)
        self.earlier = tuple(tuple(templates) for templates in state["earlier"])

    def footprint(self) -> Footprint:
        """Count the trained weights and the copy that teaches."""
        return Footprint(trainable=self.weights.count, stored=self.weights.count)
