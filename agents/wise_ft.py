"""WiSE-FT: after each task, go back part of the way towards the weights before fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.tuning import grouped, regrouped, tune_encoders

ANCHORS = ("pretrained", "previous")


class WiSEFT(Learner):
    """Weight-space ensembling of fine-tuned models (arXiv:2109.01903).

    At a task's end ``theta <- alpha theta + (1 - alpha) theta*``, where ``theta*`` are the pre-trained weights, or
    those before the task. The next task starts from the mixture. Questions within a task are answered unmixed.

    Args:
        setup: What is known of the stream.
        alpha: Share of the fine-tuned weights, in [0, 1]; 1 is full fine-tuning.
        anchor: ``"pretrained"``: towards the pre-trained weights, so that an old task's share shrinks by ``alpha``
            with every later one; ``"previous"``: towards the weights before the task.
        lr: Peak learning rate of AdamW; ``None`` is 1e-5 on a real model and 1e-3 on the tiny CLIP.
        warmup: Share of a task's steps with rising learning rate.
        label_smoothing: Of the cross-entropy.
        targets: Which encoders are trained: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="wise_ft-v0",
        title="WiSE-FT",
        paper="arXiv:2109.01903",
        code="github.com/Thunderbeee/ZSCL@08c6ef6",
        family="regularisation",
        departs=(
            "The paper fine-tunes once; here the mixture is formed after each task and the next task starts from it, "
            "as in ZSCL. The defaults are the paper's recommendation, alpha=0.5 and the pre-trained weights; the "
            "scripts of ZSCL's baseline have alpha=0.8 and anchor='previous'. Classes come from the text encoder, "
            "which is mixed too, not from a linear head."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        alpha: float = 0.5,
        anchor: str = "pretrained",
        lr: float | None = None,
        warmup: float = 0.1,
        label_smoothing: float = 0.2,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Free the encoders and keep their pre-trained weights."""
        super().__init__(
            setup,
            lr=learning_rate(lr, setup, real=1e-5, tiny=1e-3),
            warmup=warmup,
            label_smoothing=label_smoothing,
            ensemble=ensemble,
        )
        if not 0 <= alpha <= 1:
            raise SettingError(f"Expected alpha in [0, 1]; got {alpha}. 1 keeps the fine-tuned weights.")
        if anchor not in ANCHORS:
            raise SettingError(f"Expected anchor to be one of {ANCHORS}; got {anchor!r}. Choose one of these.")
        self.alpha, self.anchor = alpha, anchor
        self.weights = tune_encoders(self.backbone.model, targets)
        self.text_trains = targets != "vision"
        self.before = self.weights.copy()

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Note the weights before the task, if they are the anchor."""
        if self.anchor == "previous":
            self.before = self.weights.copy()
        return self.weights.parameters

    def end(self) -> None:
        """Mix the weights with the anchor."""
        self.weights.mix_(self.before, self.alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and an anchor that the pre-trained model does not hold."""
        return grouped(weight=self.weights.views(), before=self.before if self.anchor == "previous" else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back weights and anchor."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before = groups["before"] or self.before

    def footprint(self) -> Footprint:
        """Count the trained weights and the anchor."""
        return Footprint(trainable=self.weights.count, stored=self.weights.count)
