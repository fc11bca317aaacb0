"""Fine-tuning on what is to be retained: forgets by the way, or not at all."""

from __future__ import annotations

from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class FinetuneRetain(Eraser):
    """Steps down the cross-entropy of retained samples alone, ``CE(D_r)`` (baseline of arXiv:1911.04933).

    Samples to forget are not looked at, but their classes compete for the retained ones.

    Args:
        setup: What is known of the stream.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 3e-3 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="finetune_retain-v0",
        title="Fine-tuning on retained data",
        paper="arXiv:1911.04933",
        family="baseline",
        modalities=("image", "detection"),
        departs="Trains a merged LoRA on the image encoder, against a fixed classifier; the paper trains all weights.",
    )

    def __init__(
        self,
        setup: Setup,
        *,
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without a request."""
        super().__init__(
            setup, erase_lr=learning_rate(erase_lr, setup, real=1e-3, tiny=3e-3), r=r, lr=lr, ensemble=ensemble
        )

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return ``CE(D_r)``."""
        return None if retain is None else self.ce(retain)
