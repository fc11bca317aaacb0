"""PredKD: keep the predictions over earlier classes on the new task's images, with or without other terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.distil import distillation, feature_distance, sigmoid_loss
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.fisher import Fisher
from clgym.learner import Learner, Prompts, learning_rate
from clgym.tuning import grouped, regrouped, tune_attention


class PredKD(Learner):
    """Prediction distillation on the query, key and value projections (Rehearsal-Free, arXiv:2203.17269).

    ``CE + weight * CE(p*(. | x), p(. | x))`` on the current images, where ``p`` is restricted to the classes of all
    earlier tasks together and ``p*`` is the model before the task. With ``class_loss="bce"``, the paper's choice, both
    are a sigmoid's per class and summed over classes, which is LwF.MC: no class competes with another. The paper
    combines it with ``l2 * sum_j (theta_j - theta*_j)^2``, with ``ewc * sum_j F_j (theta_j - theta*_j)^2`` where ``F``
    is the Fisher information of earlier tasks, and with ``feat * |h(x) - h*(x)|^2``. Only projections of the image
    encoder are trained.

    Args:
        setup: What is known of the stream.
        weight: Weight of the distillation, 0 or more; higher keeps more.
        l2: Weight of the distance of the weights to those before the task; 0 is without.
        ewc: Weight of that distance as weighed by the Fisher information, see the agent ``ewc``; 0 is without.
        feat: Weight of the distance of the image features to those before the task; 0 is without.
        temperature: Of both models' answers, above 0; the loss is multiplied by its square.
        targets: Which linear layers of the image encoder are trained.
        lr: Peak learning rate of AdamW; ``None`` is 5e-5, 1e-4 on the tiny CLIP and 3e-3 on the tiny ViT.
        ensemble: Average a class's text features over all its templates when answering.
        class_loss: ``"ce"``: softmax cross-entropy, or ``"bce"``: a sigmoid's per class, summed over classes.

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
            "The default is the softmax form, which is CLIP's own; the paper prefers a sigmoid per class. On CLIP, "
            "which has no biases, sigmoids count cosines from 0.25. The Fisher information is gathered as in ewc. "
            "Projections are trained as three matrices, biases fixed. The paper's own code was not found; weights "
            "and learning rate are not the paper's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 1.0,
        l2: float = 0.0,
        ewc: float = 0.0,
        feat: float = 0.0,
        temperature: float = 1.0,
        targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        lr: float | None = None,
        ensemble: bool = True,
        class_loss: str = "ce",
    ) -> None:
        """Free the projections."""
        rate = learning_rate(lr, setup, real=5e-5, tiny=1e-4 if setup.reads_text else 3e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble, class_loss=class_loss)
        if min(weight, l2, ewc, feat) < 0 or temperature <= 0:
            raise SettingError(
                f"Expected weight, l2, ewc and feat of 0 or more and temperature above 0; got {weight}, {l2}, {ewc}, "
                f"{feat} and {temperature}. Try 1, 0, 0, 0 and 1."
            )
        self.weight, self.l2, self.ewc, self.feat, self.temperature = weight, l2, ewc, feat, temperature
        self.weights = tune_attention(self.backbone.model, targets)
        self.fisher = Fisher(self.weights) if ewc else None
        self.before: dict[str, Tensor] = {}
        self.earlier: Prompts = ()

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Keep the model before the task."""
        self.before = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, the distillation and what it is combined with."""
        z = self.backbone.encode_images(images)  # (B, d)
        loss = self.against_labels(self.classify(z, self.training_rows(self._now().prompts)), targets)
        if self.l2:
            loss = loss + self.l2 * self.weights.distance(self.before)
        if self.fisher:
            loss = loss + self.ewc * self.weights.distance(self.before, self.fisher.importance)
        if not self.feat and not self.earlier:
            return loss
        with self.weights.replaced(self.before):
            old = self.backbone.encode_images(images)
        if self.feat:
            loss = loss + self.feat * feature_distance(z, old)
        if self.earlier:
            rows = self.earlier_rows(self.earlier)
            loss = loss + self.weight * self.against_teacher(self.classify(z, rows), self.classify(old, rows))
        return loss

    def against_teacher(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distillation of logits over earlier classes ``(B, C)``, in the form of the class loss."""
        if self.class_loss == "ce":
            return distillation(student, teacher, self.temperature)
        student, teacher = self.log_odds(student) / self.temperature, self.log_odds(teacher) / self.temperature
        return self.temperature**2 * sigmoid_loss(student, teacher.sigmoid())

    def learn(self, event: Train) -> None:
        """Take one step and, for EWC, near the task's end look at how much the weights matter."""
        super().learn(event)
        if self.fisher and self.fisher.due(self.step, self.steps):
            with self.autocast:
                images, targets = self.to_device(event.inputs, event.targets)
                logits = self.logits(images, self.training_rows(self._now().prompts))  # (B, C)
                self.fisher.observe(logits, targets, self.against_labels)

    def end(self) -> None:
        """Count the task's classes among the earlier ones."""
        self.earlier += tuple(texts for texts in self._now().prompts if texts not in self.earlier)
        if self.fisher:
            self.fisher.close()

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, those before the task, and for EWC the Fisher information."""
        fisher = self.fisher.tensors() if self.fisher else {}
        return grouped(weight=self.weights.views(), before=self.before) | fisher

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before = groups["before"]
        if self.fisher:
            self.fisher.restore(groups)

    def state_dict(self) -> dict[str, Any]:
        """Add the prompts of earlier classes."""
        return super().state_dict() | {"earlier": self.earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the prompts of earlier classes too."""
        super().load_state_dict(state)
        self.earlier = tuple(tuple(templates) for templates in state["earlier"])

    def footprint(self) -> Footprint:
        """Count the trained weights, the copy that teaches and, for EWC, the Fisher information."""
        return Footprint(trainable=self.weights.count, stored=(2 if self.fisher else 1) * self.weights.count)
