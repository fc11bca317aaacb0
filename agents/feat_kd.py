"""FeatKD: keep the features of the new task's images near those of the model before the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.distil import feature_distance
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.tuning import grouped, regrouped, tune_attention


class FeatKD(Learner):
    """Feature distillation on the query, key and value projections (Rehearsal-Free, arXiv:2203.17269).

    ``CE + weight * |h(x) - h*(x)|^2`` on the current images, where ``h*`` is the image encoder before the task: in
    the first task the pre-trained one. Only projections of the image encoder are trained.

    Args:
        setup: What is known of the stream.
        weight: Weight of the distance, 0 or more; higher keeps more.
        targets: Which linear layers of the image encoder are trained.
        lr: Peak learning rate of AdamW; ``None`` is 5e-5, 1e-4 on the tiny CLIP and 3e-3 on the tiny ViT.
        ensemble: Average a class's text features over all its templates when answering.
        class_loss: ``"ce"``: softmax cross-entropy, or ``"bce"``: a sigmoid's per class, summed over classes.

    Raises:
        NotRegisteredError: A target is no layer.
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="feat_kd-v0",
        title="Feature distillation",
        paper="arXiv:2203.17269",
        family="regularisation",
        departs=(
            "The features are CLIP's projected image features of length 1, and they are held in the first task too. "
            "The classifier is CLIP's frozen text encoder, not a head; projections are trained as three matrices, "
            "biases fixed. The paper's own code was not found; the weight and the learning rate are not the paper's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float = 10.0,
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
        self.weight = weight
        self.weights = tune_attention(self.backbone.model, targets)
        self.before: dict[str, Tensor] = {}

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Keep the model before the task."""
        self.before = self.weights.copy()
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy and the distance of the features."""
        z = self.backbone.encode_images(images)  # (B, d)
        loss = self.against_labels(self.classify(z, self.training_rows(self._now().prompts)), targets)
        with self.weights.replaced(self.before):
            old = self.backbone.encode_images(images)
        return loss + self.weight * feature_distance(z, old)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, and those before the task."""
        return grouped(weight=self.weights.views(), before=self.before)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back both."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before = groups["before"]

    def footprint(self) -> Footprint:
        """Count the trained weights and the copy that teaches."""
        return Footprint(trainable=self.weights.count, stored=self.weights.count)
