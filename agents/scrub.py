"""SCRUB: a student that disagrees with its former self on what must go, and agrees on what remains."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Setup
from clgym.errors import SettingError
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class SCRUB(Eraser):
    """Scalable remembering and unlearning unbound (arXiv:2302.09880).

    The teacher ``p`` is the model as it was when the phase began. In the first part of a phase steps alternate: one up
    the divergence ``T^2 KL(p(x_f) || q(x_f))``, one down ``gamma CE(D_r) + alpha T^2 KL(p(x_r) || q(x_r))``; in the
    rest all go down. What the steps in one direction do not use of an event they leave.

    Args:
        setup: What is known of the stream.
        alpha: Weight of the agreement on retained samples.
        gamma: Weight of the cross-entropy of retained samples.
        temperature: ``T``, of both distributions.
        ascent: Share of a phase's steps in the first part.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 1e-2 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="scrub-v0",
        title="SCRUB",
        paper="arXiv:2302.09880",
        code="github.com/meghdadk/SCRUB@98ffb11",
        family="baseline",
        departs=(
            "Directions alternate by step, not by epoch. No rewinding to a checkpoint, and no term to a running mean "
            "of the weights. Trains a merged LoRA on the image encoder with AdamW and a cosine, against a fixed "
            "classifier; the paper trains all weights with SGD."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        alpha: float = 0.001,
        gamma: float = 0.99,
        temperature: float = 2.0,
        ascent: float = 0.5,
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without a request."""
        super().__init__(
            setup, erase_lr=learning_rate(erase_lr, setup, real=1e-3, tiny=1e-2), r=r, lr=lr, ensemble=ensemble
        )
        if alpha < 0 or gamma < 0 or temperature <= 0 or not 0 <= ascent <= 1:
            raise SettingError(
                "Expected alpha and gamma of 0 or more, temperature above 0 and ascent in [0, 1]; got "
                f"{alpha}, {gamma}, {temperature} and {ascent}. The code has 0.001, 0.99, 2 and 0.5."
            )
        self.alpha, self.gamma, self.temperature, self.ascent = alpha, gamma, temperature, ascent

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss of a step up or down; where one batch is missing every step is of the other kind."""
        up = retain is None or (self.step % 2 == 0 and self.step < self.ascent * self.steps)
        if forget is not None and up:
            return -self.divergence(forget[0])
        if retain is None:
            return None
        return self.gamma * self.ce(retain) + self.alpha * self.divergence(retain[0])

    def divergence(self, images: Tensor) -> Tensor:
        """Return ``T^2 KL(before || now)``, averaged over images."""
        then = self.classify(self.before(images), self.rows) / self.temperature
        now = self.logits(images, self.rows) / self.temperature
        agreed = F.kl_div(now.log_softmax(1), then.log_softmax(1), reduction="batchmean", log_target=True)
        return self.temperature**2 * agreed
