"""LIRF-like L2: push the features of what must go away from where they were, and keep what the rest says."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Setup
from clgym.distil import distillation
from clgym.errors import SettingError
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class LIRF(Eraser):
    """The removal half of learning with recoverable forgetting (arXiv:2207.08224), on features.

    The loss is ``CE(D_r) + keep KD(x_f) - push |z(x_f) - z_before(x_f)|^2``. ``z`` are features of length 1, so that
    the push has a bound, of 4. ``KD`` holds the logits of the classes that remain, for samples to forget too, to what
    they were.

    Args:
        setup: What is known of the stream.
        push: Weight of the squared distance, 0 or more.
        keep: Weight of the distillation, 0 or more.
        temperature: Of the distillation.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 3e-3 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="lirf-v0",
        title="LIRF-like L2",
        paper="arXiv:2207.08224",
        code="github.com/bjzhb666/GS-LoRA@b7df449",
        family="baseline",
        departs=(
            "What is pushed away are the features that the classifier reads, not attention maps of a lower half of the "
            "network. Nothing is deposited for recovery. No loss on wrong labels of samples to forget. Trains a merged "
            "LoRA on the image encoder, against a fixed classifier. The weights are not the code's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        push: float = 1.0,
        keep: float = 0.1,
        temperature: float = 2.0,
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without a request."""
        super().__init__(
            setup, erase_lr=learning_rate(erase_lr, setup, real=1e-3, tiny=3e-3), r=r, lr=lr, ensemble=ensemble
        )
        if push < 0 or keep < 0 or temperature <= 0:
            raise SettingError(
                f"Expected push and keep of 0 or more and temperature above 0; got {push}, {keep} and {temperature}. "
                "Try 1.0, 0.1 and 2.0."
            )
        self.push, self.keep, self.temperature = push, keep, temperature

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss above; without a batch its terms are left out."""
        terms = [] if retain is None else [self.ce(retain)]
        if forget is not None:
            then, now = self.before(forget[0]), self.encode(forget[0])
            staying = [c for c, name in enumerate(self._now().classes) if name not in self.erasing.gone]
            rows = self.rows[staying]
            terms.append(
                self.keep * distillation(self.classify(now, rows), self.classify(then, rows), self.temperature)
            )
            terms.append(-self.push * self.shift(now, then))
        return sum(terms[1:], terms[0]) if terms else None

    @staticmethod
    def shift(now: Tensor, then: Tensor) -> Tensor:
        """Return the squared distance of features ``(B, d)`` made length 1, averaged over rows, in [0, 4].

        >>> LIRF.shift(Tensor([[2.0, 0.0]]), Tensor([[0.0, 1.0]]))
        tensor(2.)
        """
        return (F.normalize(now, dim=-1) - F.normalize(then, dim=-1)).square().sum(dim=-1).mean()
