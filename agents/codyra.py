"""CoDyRA: each task learns which ranks of its adapter it needs, and the rest are pruned before merging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Setup
from clgym.attention import Encoders
from clgym.contrast import text_to_image_weight, two_way_loss
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.ops import double_soft_threshold_

PAPER_STEPS = 500  # iterations per task for which kappa_max is stated


class CoDyRA(Learner):
    """Dynamic rank-selective LoRA (arXiv:2412.01004).

    An adapter is ``Delta W = B diag(w) A`` with an importance ``w`` per rank. The loss plus
    ``lambda ||w||_1`` is minimised by a gradient step and then a soft threshold on ``w``, whose level rises
    from 0 to ``kappa_max`` over the second, sparse part of a task. What survives is merged.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter before pruning.
        lr: Peak learning rate of AdamW; ``None`` is 5e-4 on a real model and 2e-3 on the tiny CLIP.
        dense_share: Share of a task's steps before the first threshold.
        levels: Number of threshold levels, from 0 to ``kappa_max``.
        kappa_max: Last level, stated for 500 steps per task and scaled by ``500 / steps``, so that the total
            shrinkage is the paper's for any task length; higher prunes more.
        prox: ``"paper"``: the soft threshold; ``"released"``: the code's in-place masks, dead zone ``2 kappa``.
        gates: ``"learned"``; or ``"random"``, the control: ``w`` gets no gradient, only its draw and the threshold.
        text_to_image: Weight of the text-to-image term; ``None`` is 1 on a real model and 0.2 on the tiny CLIP.
        targets: Which encoders are adapted: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="codyra-v0",
        title="CoDyRA",
        paper="arXiv:2412.01004",
        code="github.com/Artificer-AI-Lab/CoDyRA@c1691e4",
        family="optimisation",
        departs=(
            "The threshold is the paper's; the released code's dead zone of 2 kappa is prox='released'. kappa_max "
            "scales with 500 / steps and levels are spaced evenly, so that shorter tasks shrink as much. Thresholds "
            "start one step after the level first rises, as in the code. Text rows of old classes are not encoded: "
            "the released loss masks or zeroes every term they stand in, and counts them in one average. The stored "
            "(A, B) history, which the code never reads, is left out. The last task is merged at its end; outputs "
            "are the same. On the tiny CLIP the text-to-image term has a fifth of its weight, which keeps its "
            "proportion to the first term: it grows with images per class of a batch."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 16,
        lr: float | None = None,
        dense_share: float = 0.5,
        levels: int = 50,
        kappa_max: float = 0.005,
        prox: str = "paper",
        gates: str = "learned",
        text_to_image: float | None = None,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Put gated adapters on the backbone."""
        super().__init__(
            setup, lr=learning_rate(lr, setup, real=5e-4, tiny=2e-3), betas=(0.9, 0.9999), ensemble=ensemble
        )
        for name, value, known in (("prox", prox, ("paper", "released")), ("gates", gates, ("learned", "random"))):
            if value not in known:
                raise SettingError(f"Expected {name} to be one of {known}; got {value!r}. Choose one of these.")
        if not 0 <= dense_share <= 1 or levels < 2 or kappa_max < 0:
            raise SettingError(
                f"Expected dense_share in [0, 1], levels of 2 or more and kappa_max of 0 or more; got "
                f"{dense_share}, {levels} and {kappa_max}. The paper has 0.5, 50 and 0.005."
            )
        self.dense_share, self.levels, self.kappa_max = dense_share, levels, kappa_max
        self.prox, self.gates, self.text_to_image = prox, gates, text_to_image_weight(text_to_image, setup)
        self.lora = self.adapt(r=r, targets=targets, gate="normal")
        self.old_classes = 0

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Draw a fresh gated adapter."""
        return [self.merge_and_renew()]

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return ``CE(image -> current text) + CE(text -> image)``, the second averaged over old and new rows."""
        logits = self.logits(images, self.training_rows(self._now().prompts))
        return two_way_loss(logits, targets, self.old_classes, self.text_to_image)

    def after_backward(self) -> None:
        """Set the threshold that the step ends with; in the control, keep the loss away from the importances."""
        assert self.lora is not None
        assert self.optimizer is not None
        arena = self.lora.arena()
        first = arena.numel() - len(self.lora.gates())  # the arena ends with the gates
        if self.gates == "random":
            assert arena.grad is not None
            arena.grad[first:].zero_()
        if self.prox == "paper":
            self.optimizer.param_groups[0] |= {"kappa": self._kappa(), "start": first}

    def after_step(self) -> None:
        """Shrink the importances as the released code does."""
        if self.prox == "released" and (kappa := self._kappa()):
            assert self.lora is not None
            double_soft_threshold_(self.lora.gates(), kappa)

    def _kappa(self) -> float:
        return threshold(self.step, self.steps, self.dense_share, self.levels, self.kappa_max)

    def end(self) -> None:
        """Merge the surviving ranks."""
        assert self.lora is not None
        self.lora.merge_()
        self.old_classes += len(self._now().classes)

    def tensors(self) -> dict[str, Tensor]:
        """Add the number of old classes to the adapters."""
        return super().tensors() | {"old_classes": torch.tensor(self.old_classes)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back adapters and the number of old classes."""
        self.old_classes = int(tensors.pop("old_classes"))
        super().restore(tensors)


def threshold(step: int, steps: int, dense_share: float, levels: int, kappa_max: float) -> float:
    """Return the soft threshold after a step, counted from 0; 0.0 in the dense part.

    >>> 249 == sum(threshold(i, 500, 0.5, 50, 0.005) > 0 for i in range(500))
    True
    >>> round(sum(threshold(i, 500, 0.5, 50, 0.005) for i in range(500)), 4)
    0.6499
    """
    dense = int(steps * dense_share)
    if step <= dense:
        return 0.0
    # The released code floors the spacing of levels, which is exact for its 500 steps and 50 levels.
    level = min(int((step - dense) * levels / (steps - dense)) + 1, levels - 1)
    return kappa_max * PAPER_STEPS / steps * level / (levels - 1)
