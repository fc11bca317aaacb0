"""FDR: relearn what must go under wrong labels, and stay near the old function on what remains."""

from __future__ import annotations

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.errors import SettingError
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class FDR(Eraser):
    """Function distance regularisation (arXiv:1805.08289), turned to forgetting as GS-LoRA's tables have it.

    The loss is ``CE(x_f, other label) + weight |g(x_r) - g_before(x_r)|_2``, with the logits ``g`` of now and of when
    the phase began; the labels of retained samples are not used. The other label is drawn at each showing, uniformly
    among the classes of which something is to remain.

    Args:
        setup: What is known of the stream.
        weight: Of the distance, 0 or more; higher keeps more; ``None`` is 1 on a real model and 0.1 on a tiny one.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 5e-3 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="fdr-v0",
        title="Function distance regularisation",
        paper="arXiv:1805.08289",
        code="github.com/bjzhb666/GS-LoRA@0526871",
        family="regularisation",
        departs=(
            "The paper holds a learner to its past on stored samples; here these are what may be retained, and what is "
            "learned are wrong labels. Trains a merged LoRA on the image encoder, against a fixed "
            "classifier. The weight is not the code's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        weight: float | None = None,
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without a request."""
        super().__init__(
            setup, erase_lr=learning_rate(erase_lr, setup, real=1e-3, tiny=5e-3), r=r, lr=lr, ensemble=ensemble
        )
        self.weight = learning_rate(weight, setup, real=1.0, tiny=0.1)
        if self.weight < 0:
            raise SettingError(f"Expected weight of 0 or more; got {weight}. Try 1.0.")

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss above; without a batch its term is left out."""
        terms = []
        if forget is not None:
            images, targets = forget
            terms.append(self.ce((images, self.other_labels(targets))))
        if retain is not None:
            terms.append(self.weight * self.distance(retain[0]))
        return sum(terms[1:], terms[0]) if terms else None

    def distance(self, images: Tensor) -> Tensor:
        """Return how far the logits are from what they were, in the Euclidean norm, averaged over images."""
        then = self.classify(self.before(images), self.rows)
        apart: Tensor = torch.linalg.vector_norm(self.logits(images, self.rows) - then, dim=1)  # (B,)
        return apart.mean()
