"""Sequential LoRA: fine-tune on one task after another, merge, and hope; the lower bound of every table."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clgym.agent import AgentSpec, Setup
from clgym.attention import Encoders
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate


class SequentialLoRA(Learner):
    """Low-rank adaptation of both encoders, merged and drawn anew at each task (Hu et al. 2021).

    ``W_t = W_{t-1} + (alpha / r) B_t A_t`` on all six linears of every block; nothing holds old tasks in place.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter.
        alpha: The update is multiplied by ``alpha / r``; 0 means by 1, as in CoDyRA's baseline.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 5e-4 on the tiny CLIP.
        label_smoothing: Of the cross-entropy.
        targets: Which encoders are adapted: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="sequential_lora-v0",
        title="Sequential LoRA",
        paper="arXiv:2106.09685",
        family="baseline",
        modalities=("image", "detection"),
        departs="One adapter per task, merged before the next is drawn; the paper has a single task.",
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 16,
        alpha: float = 0.0,
        lr: float | None = None,
        label_smoothing: float = 0.0,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Put fresh adapters on the backbone; they change nothing yet."""
        super().__init__(
            setup, lr=learning_rate(lr, setup, real=1e-3, tiny=5e-4), label_smoothing=label_smoothing, ensemble=ensemble
        )
        self.lora = self.adapt(r=r, alpha=alpha, targets=targets)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        return [self.merge_and_renew()]
