"""Gradient ascent: unlearn by climbing the loss that was learned; over-erases, and takes much along."""

from __future__ import annotations

from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.errors import SettingError
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class GradientAscent(Eraser):
    """Steps up the cross-entropy of samples to forget (NegGrad, arXiv:1911.04933; NegGrad+, arXiv:2302.09880).

    The loss is ``share CE(D_r) - (1 - share) CE(D_f)``: plain ascent at 0, NegGrad+ above.

    Args:
        setup: What is known of the stream.
        share: Weight of retained samples, in [0, 1).
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-4 on a real model and, on a
            tiny one, 3e-4 for plain ascent and 5e-3 with retained samples.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="gradient_ascent-v0",
        title="Gradient ascent (NegGrad)",
        paper="arXiv:1911.04933",
        code="github.com/meghdadk/SCRUB@98ffb11",
        family="baseline",
        modalities=("image", "detection"),
        departs=(
            "Trains a merged LoRA on the image encoder, against a fixed classifier, with AdamW; the papers train all "
            "weights. The ascent has no bound."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        share: float = 0.0,
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without a request."""
        rate = learning_rate(erase_lr, setup, real=1e-4, tiny=5e-3 if share else 3e-4)
        super().__init__(setup, erase_lr=rate, r=r, lr=lr, ensemble=ensemble)
        if not 0 <= share < 1:
            raise SettingError(f"Expected share in [0, 1); got {share}. At 0 retained samples are not used.")
        self.share = share

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return ``share CE(D_r) - (1 - share) CE(D_f)``; without a batch its term is left out."""
        terms = []
        if forget is not None:
            terms.append(-(1 - self.share) * self.ce(forget))
        if retain is not None and self.share:
            terms.append(self.share * self.ce(retain))
        return sum(terms[1:], terms[0]) if terms else None
