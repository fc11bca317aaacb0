"""Random labels: teach samples to forget under wrong labels, until the right one means nothing."""

from __future__ import annotations

from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class RandomLabel(Eraser):
    """Steps down the cross-entropy of samples to forget under other labels, and of retained ones (arXiv:2010.10981).

    The loss is ``CE(D_r) + CE(x_f, other label)``. The other label is drawn at each showing, uniformly among the
    classes of which something is to remain, without the sample's own.

    Args:
        setup: What is known of the stream.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 1e-2 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="random_label-v0",
        title="Random labels",
        paper="arXiv:2010.10981",
        family="baseline",
        departs=(
            "The unlearning by wrong labels alone, not the removal of stored updates that gives the paper its name. A "
            "label is drawn anew at each showing. Trains a merged LoRA on the image encoder, against a fixed "
            "classifier; the paper trains all weights."
        ),
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
            setup, erase_lr=learning_rate(erase_lr, setup, real=1e-3, tiny=1e-2), r=r, lr=lr, ensemble=ensemble
        )

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss above; without a batch its term is left out."""
        terms = [] if retain is None else [self.ce(retain)]
        if forget is not None:
            images, targets = forget
            terms.append(self.ce((images, self.other_labels(targets))))
        return sum(terms[1:], terms[0]) if terms else None
