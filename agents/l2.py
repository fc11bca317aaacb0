"""L2: keep the attention's weights near what they were before the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.tuning import grouped, regrouped, tune_attention

PENALTIES = ("loss", "proximal")


class L2(Learner):
    """L2 regularisation of the query, key and value projections (Rehearsal-Free, arXiv:2203.17269).

    ``CE + weight * sum_j (theta_j - theta*_j)^2``, where ``theta`` are the projections of the image encoder, which
    alone are trained, and ``theta*`` their values before the task: in the first task the pre-trained ones.

    Args:
        setup: What is known of the stream.
        weight: Weight of the penalty, 0 or more; higher keeps more.
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
        id="l2-v0",
        title="L2 on the attention's projections",
        paper="arXiv:2203.17269",
        code="github.com/GT-RIPL/Continual-Learning-Benchmark@4018381",
        family="regularisation",
        departs=(
            "The classifier is CLIP's frozen text encoder, not a head; projections are trained as three matrices, "
            "biases fixed. The paper's own code was not found: the penalty with a single anchor is that of the "
            "authors' earlier benchmark, which has none in the first task. The weight and the learning rate are not "
            "the paper's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 1.0,
        penalty: str = "loss",
        targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        lr: float | None = None,
        ensemble: bool = True,
        class_loss: str = "ce",
    ) -> None:
        """Free the projections."""
        rate = learning_rate(lr, setup, real=5e-5, tiny=1e-4 if setup.reads_text else 3e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble, class_loss=class_loss)
        if weight < 0:
            raise SettingError(f"Expected weight of 0 or more; got {weight}. 0 is plain fine-tuning.")
        if penalty not in PENALTIES:
            raise SettingError(f"Expected penalty to be one of {PENALTIES}; got {penalty!r}. Choose one of these.")
        self.weight, self.penalty = weight, penalty
        self.weights = tune_attention(self.backbone.model, targets)
        self.anchor: dict[str, Tensor] = {}

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Anchor the weights where they are."""
        self.anchor = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy and the penalty."""
        loss = super().loss(images, targets)
        return loss + self.weight * self.weights.distance(self.anchor) if self.penalty == "loss" else loss

    def after_step(self) -> None:
        """Solve for the penalty, if it is not in the loss."""
        if self.penalty == "proximal":
            self.weights.pull_(self.anchor, self.lr * self.schedule(self.step) * self.weight)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and anchor."""
        return grouped(weight=self.weights.views(), anchor=self.anchor)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back weights and anchor."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.anchor = groups["anchor"]

    def footprint(self) -> Footprint:
        """Count the trained weights and the anchor."""
        return Footprint(trainable=self.weights.count, stored=self.weights.count)
