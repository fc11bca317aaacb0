"""Zero-shot CLIP: never learns, hence never forgets; the row that every method is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clgym.agent import AgentSpec, Setup
from clgym.events import TaskStart, Train
from clgym.learner import Learner


class ZeroShot(Learner):
    """The frozen model, asked with class names alone (Radford et al. 2021).

    Args:
        setup: What is known of the stream.
        ensemble: Average a class's text features over all its templates.
    """

    spec = AgentSpec(
        id="zero_shot-v0",
        title="Zero-shot CLIP",
        paper="arXiv:2103.00020",
        family="baseline",
        needs_text=True,
    )

    def __init__(self, setup: Setup, *, ensemble: bool = True) -> None:
        """Load the backbone."""
        super().__init__(setup, lr=1.0, ensemble=ensemble)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Train nothing."""
        return ()

    def learn(self, event: Train) -> None:
        """Ignore the batch."""
