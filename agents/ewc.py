"""EWC: keep each weight near what it was, the more so the more the earlier tasks' answers depend on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.tuning import grouped, regrouped, tune_attention

PENALTIES = ("loss", "proximal")


class EWC(Learner):
    """Elastic weight consolidation (arXiv:1612.00796) of the query, key and value projections.

    ``CE + weight * sum_j F_j (theta_j - theta*_j)^2``, where ``theta`` are the projections of the image encoder,
    which alone are trained, ``theta*`` their values before the task, and ``F`` the diagonal Fisher information of
    the earlier tasks: the squared gradient of the cross-entropy of a batch, averaged over batches. The first task
    has no penalty.

    Args:
        setup: What is known of the stream.
        weight: Weight of the penalty, 0 or more; higher keeps more.
        empirical: Take the true label in the Fisher information, rather than the model's own answer.
        decay: Factor of the earlier tasks' ``F`` when a task's own is added, in [0, 1]; 0 remembers the last alone.
        fisher_share: Share of a task's last steps whose batches enter ``F``, in (0, 1].
        penalty: ``"loss"``: added to the loss, as in the paper, where AdamW rescales its gradient too; or
            ``"proximal"``: solved in closed form after each step, which is stable for any weight.
        targets: Which linear layers of the image encoder are trained.
        lr: Peak learning rate of AdamW; ``None`` is 5e-5 on a real model and 3e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        NotRegisteredError: A target is no layer.
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="ewc-v0",
        title="Elastic weight consolidation",
        paper="arXiv:1612.00796",
        code="github.com/GT-RIPL/Continual-Learning-Benchmark@4018381",
        family="regularisation",
        departs=(
            "The setting is Rehearsal-Free's (arXiv:2203.17269): projections of the attention alone, one anchor; the "
            "paper has one penalty per earlier task. A stream does not come back, so the Fisher information is "
            "averaged over the batches of a task's last steps as they pass, at the weights of that moment, where the "
            "paper and the benchmark read the task again at its end. It is that of batches, not of samples; the "
            "benchmark multiplies it by the batch size. The classifier is CLIP's frozen text encoder, not a head. "
            "Weight and learning rate are not the papers'."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 10000.0,
        empirical: bool = False,
        decay: float = 1.0,
        fisher_share: float = 0.2,
        penalty: str = "loss",
        targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Free the projections; no weight is important yet."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=5e-5, tiny=3e-3), ensemble=ensemble)
        if weight < 0 or not 0 <= decay <= 1 or not 0 < fisher_share <= 1:
            raise SettingError(
                f"Expected weight of 0 or more, decay in [0, 1] and fisher_share in (0, 1]; got {weight}, {decay} "
                f"and {fisher_share}. Try 10000, 1 and 0.2."
            )
        if penalty not in PENALTIES:
            raise SettingError(f"Expected penalty to be one of {PENALTIES}; got {penalty!r}. Choose one of these.")
        self.weight, self.empirical, self.decay = weight, empirical, decay
        self.fisher_share, self.penalty = fisher_share, penalty
        self.weights = tune_attention(self.backbone.model, targets)
        self.anchor: dict[str, Tensor] = {}
        self.importance, self.fisher = self.weights.zeros(), self.weights.zeros()
        self.batches = 0

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Anchor the weights where they are."""
        self.anchor = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy and the penalty."""
        loss = super().loss(images, targets)
        if self.penalty == "proximal":
            return loss
        return loss + self.weight * self.weights.distance(self.anchor, self.importance)

    def after_step(self) -> None:
        """Solve for the penalty, if it is not in the loss."""
        if self.penalty == "proximal":
            strength = self.lr * self.schedule(self.step) * self.weight
            self.weights.pull_(self.anchor, strength, self.importance)

    def learn(self, event: Train) -> None:
        """Take one step, and near the task's end look at how much the weights matter."""
        super().learn(event)
        if self.step > (1 - self.fisher_share) * self.steps:
            with self.autocast:
                self.observe(*self.to_device(event.inputs, event.targets))

    def observe(self, images: Tensor, targets: Tensor) -> None:
        """Add a batch's squared gradients to the task's Fisher information."""
        logits = self.logits(images, self.training_rows(self._now().prompts))  # (B, C)
        labels = targets if self.empirical else logits.argmax(dim=1)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), self.weights.parameters)
        for name, gradient in zip(self.weights.names, gradients, strict=True):
            self.fisher[name] += gradient.square()
        self.batches += 1

    def end(self) -> None:
        """Add the task's Fisher information to that of the earlier ones."""
        for name, total in self.fisher.items():
            self.importance[name] = self.decay * self.importance[name] + total / max(self.batches, 1)
        self.fisher, self.batches = self.weights.zeros(), 0

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, anchor, and the Fisher information of earlier tasks and of this one."""
        groups = {"anchor": self.anchor, "importance": self.importance, "fisher": self.fisher}
        return grouped(weight=self.weights.views(), **groups) | {"batches": torch.tensor(self.batches)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back."""
        self.batches = int(tensors.pop("batches"))
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.anchor, self.importance, self.fisher = groups["anchor"], groups["importance"], groups["fisher"]

    def footprint(self) -> Footprint:
        """Count the trained weights, the anchor and the Fisher information."""
        return Footprint(trainable=self.weights.count, stored=2 * self.weights.count)
