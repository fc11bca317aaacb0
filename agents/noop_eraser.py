"""No erasure: acknowledges every request and does nothing; the worst that an answer to a request can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clgym.agent import AgentSpec, Setup
from clgym.events import Erase, EraseEnd, EraseRequest, TaskStart
from clgym.learner import Learner, learning_rate


class NoopEraser(Learner):
    """Learns by merged LoRA and ignores requests to forget: what every number about erasure must call worst.

    Until the first request it is the same model as the other methods made to forget.

    Args:
        setup: What is known of the stream.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.
    """

    spec = AgentSpec(
        id="noop_eraser-v0",
        title="No erasure",
        family="baseline",
        modalities=("image", "detection"),
        departs="Not a method: it says that it has forgotten, and has not.",
    )

    def __init__(self, setup: Setup, *, r: int = 8, lr: float | None = None, ensemble: bool = True) -> None:
        """Put adapters on both encoders."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=1e-3), ensemble=ensemble)
        self.lora = self.adapt(r=r)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        return [self.merge_and_renew()]

    def begin_erasure(self, event: EraseRequest) -> None:
        """Do nothing."""

    def erase(self, event: Erase) -> None:
        """Do nothing."""

    def end_erasure(self, event: EraseEnd) -> None:
        """Do nothing."""
