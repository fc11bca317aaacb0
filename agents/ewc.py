"""EWC: keep each weight near what it was, the more so the more the earlier tasks' answers depend on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.fisher import Fisher
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
        lr: Peak learning rate of AdamW; ``None`` is 5e-5, 1e-4 on the tiny CLIP and 3e-3 on the tiny ViT.
        ensemble: Average a class's text features over all its templates when answering.
        class_loss: ``"ce"``: softmax cross-entropy, or ``"bce"``: a sigmoid's per class, summed over classes.

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
        class_loss: str = "ce",
    ) -> None:
        """Free the projections; no weight is important yet."""
        rate = learning_rate(lr, setup, real=5e-5, tiny=1e-4 if setup.reads_text else 3e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble, class_loss=class_loss)
        if weight < 0:
            raise SettingError(f"Expected weight of 0 or more; got {weight}. 0 is plain fine-tuning.")
        if penalty not in PENALTIES:
            raise SettingError(f"Expected penalty to be one of {PENALTIES}; got {penalty!r}. Choose one of these.")
        self.weight, self.penalty = weight, penalty
        self.weights = tune_attention(self.backbone.model, targets)
        self.fisher = Fisher(self.weights, empirical=empirical, decay=decay, share=fisher_share)
        self.anchor: dict[str, Tensor] = {}

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Anchor the weights where they are."""
        self.anchor = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy and the penalty."""
        loss = super().loss(images, targets)
        if self.penalty == "proximal":
            return loss
        return loss + self.weight * self.weights.distance(self.anchor, self.fisher.importance)

    def after_step(self) -> None:
        """Solve for the penalty, if it is not in the loss."""
        if self.penalty == "proximal":
            strength = self.lr * self.schedule(self.step) * self.weight
            self.weights.pull_(self.anchor, strength, self.fisher.importance)

    def learn(self, event: Train) -> None:
        """Take one step, and near the task's end look at how much the weights matter."""
        super().learn(event)
        if self.fisher.due(self.step, self.steps):
            with self.autocast:
                images, targets = self.to_device(event.inputs, event.targets)
                logits = self.logits(images, self.training_rows(self._now().prompts))  # (B, C)
                self.fisher.observe(logits, targets, self.against_labels)

    def end(self) -> None:
        """Add the task's Fisher information to that of the earlier ones."""
        self.fisher.close()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, anchor, and the Fisher information of earlier tasks and of this one."""
        return grouped(weight=self.weights.views(), anchor=self.anchor) | self.fisher.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.anchor = groups["anchor"]
        self.fisher.restore(groups)

    def footprint(self) -> Footprint:
        """Count the trained weights, the anchor and the Fisher information."""
        return Footprint(trainable=self.weights.count, stored=2 * self.weights.count)
