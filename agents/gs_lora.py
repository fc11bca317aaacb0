"""GS-LoRA: unlearn with adapters on few blocks, up to a bound, while what remains is rehearsed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.errors import SettingError
from clgym.group_sparse import FFN, GroupSparsity, bounded
from clgym.learner import learning_rate
from clgym.unlearning import Batch, Eraser


class GSLoRA(Eraser):
    """Group-sparse LoRA for continual forgetting (arXiv:2403.11530).

    A phase minimises ``CE(D_r) + beta max(0, bound - CE(D_f)) + alpha sum_g |w_g|_2``. Trained are adapters on the
    feed-forward part of every block of the image encoder; a group ``w_g`` is those of one block. The forgetting term
    ends where the cross-entropy of what must go reaches the bound. The adapter is merged at the end. How many groups
    were zero then is kept in ``zero_groups``, a number for each phase.

    Args:
        setup: What is known of the stream.
        beta: Weight of the forgetting term.
        bound: Cross-entropy, in nats, at which it ends; ``None`` is 105 on a real model and 10 on a tiny one.
        alpha: Strength of the group penalty; ``None`` is 1e-4 as a loss and 20 as a threshold.
        dense_share: Share of a phase's steps before the penalty begins.
        penalty: ``"loss"``: as in the paper, where groups get small but not zero; ``"proximal"``: the group threshold.
        erase_lr: Peak learning rate of AdamW in a phase; ``None`` is 1e-3 on a real model and 5e-3 on a tiny one.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW in tasks; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="gs_lora-v0",
        title="GS-LoRA",
        paper="arXiv:2403.11530",
        code="github.com/bjzhb666/GS-LoRA@0f3228f",
        family="architecture",
        modalities=("image", "detection"),
        departs=(
            "Adapters are not scaled by 1/8, and the learning rate is an eighth of the code's 1e-2 instead. One weight "
            "beta for all requests, where the scripts tune it for each. The running mean of the weights, which the "
            "code only evaluates, is left out. The learning rate falls to 0, not to 1e-5. On a tiny model, whose "
            "logits are small, the bound is lower: 105 fits logits of scale 64. penalty='proximal' is not the paper's."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        beta: float = 0.2,
        bound: float | None = None,
        alpha: float | None = None,
        dense_share: float = 0.2,
        penalty: str = "loss",
        erase_lr: float | None = None,
        r: int = 8,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Group the adapters by block."""
        rate = learning_rate(erase_lr, setup, real=1e-3, tiny=5e-3)
        super().__init__(setup, erase_lr=rate, erase_decay=0.05, layers=FFN, r=r, lr=lr, ensemble=ensemble)
        self.beta, self.bound = beta, learning_rate(bound, setup, real=105.0, tiny=10.0)
        if beta < 0 or self.bound <= 0:
            raise SettingError(
                f"Expected beta of 0 or more and bound above 0; got {beta} and {self.bound}. The paper has 0.2 and 105."
            )
        assert self.lora is not None
        strength = (1e-4 if penalty == "loss" else 20.0) if alpha is None else alpha
        self.groups = GroupSparsity(self.lora, self.trained, alpha=strength, dense_share=dense_share, penalty=penalty)
        self.zero_groups: list[int] = []

    def erasure_loss(self, forget: Batch | None, retain: Batch | None) -> Tensor | None:
        """Return the loss above; without a batch its term is left out."""
        terms: list[Any] = []
        if retain is not None:
            terms.append(self.ce(retain))
        if forget is not None:
            terms.append(self.beta * bounded(self.ce(forget), self.bound))
        return sum(terms) + self.groups.loss(self.step, self.steps) if terms else None

    def after_backward(self) -> None:
        """Set the threshold that a step of a phase ends with."""
        if self.in_phase:
            assert self.optimizer is not None
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.param_groups[0] |= self.groups.threshold(self.step, self.steps, rate)

    def end_phase(self) -> None:
        """Count the groups that are zero."""
        self.zero_groups.append(self.groups.zeros())

    def state_dict(self) -> dict[str, Any]:
        """Add the counts."""
        return super().state_dict() | {"zero_groups": list(self.zero_groups)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the counts."""
        super().load_state_dict(state)
        self.zero_groups = list(state["zero_groups"])
