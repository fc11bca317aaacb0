"""Full fine-tuning: train every weight of CLIP on one task after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.tuning import tune_encoders


class FullFinetune(Learner):
    """Sequential fine-tuning of both encoders, the baseline of ZSCL's tables (arXiv:2303.06628).

    Nothing holds old tasks or the pre-trained model in place; the logit scale is fixed.

    Args:
        setup: What is known of the stream.
        lr: Peak learning rate of AdamW; ``None`` is 1e-5 on a real model and 1e-3 on the tiny CLIP.
        weight_decay: AdamW's weight decay.
        warmup: Share of a task's steps with rising learning rate.
        label_smoothing: Of the cross-entropy.
        targets: Which encoders are trained: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="full_finetune-v0",
        title="Full fine-tuning",
        paper="arXiv:2303.06628",
        code="github.com/Thunderbeee/ZSCL@08c6ef6",
        family="baseline",
        departs=(
            "One learning rate for all tasks, where ZSCL's scripts have 5e-5 for Aircraft and MNIST. Steps, batches "
            "and augmentation are the scenario's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        lr: float | None = None,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        label_smoothing: float = 0.2,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Free the encoders."""
        super().__init__(
            setup,
            lr=learning_rate(lr, setup, real=1e-5, tiny=1e-3),
            weight_decay=weight_decay,
            warmup=warmup,
            label_smoothing=label_smoothing,
            ensemble=ensemble,
        )
        self.weights = tune_encoders(self.backbone.model, targets)
        self.text_trains = targets != "vision"

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Train on from the last task's weights."""
        return self.weights.parameters

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained weights."""
        return self.weights.views()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the trained weights."""
        self.weights.put_(tensors)

    def footprint(self) -> Footprint:
        """Count the trained weights."""
        return Footprint(trainable=self.weights.count)
