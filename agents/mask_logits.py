"""A mask over logits: never answers with what must be forgotten, and forgets nothing; suppression, not erasure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from clgym.agent import AgentSpec, Setup
from clgym.errors import SettingError
from clgym.events import Answer, Erase, Query, TaskStart
from clgym.head import UNMET
from clgym.learner import Learner, learning_rate

MASKS = ("off", "least")


class MaskLogits(Learner):
    """Learns by merged LoRA and hides erased classes when it answers; nothing that was learned changes.

    Requests for samples, domains or users name no class that goes as a whole, and are acknowledged without an effect. A
    request to relearn takes the mask off. Until the first request it is the same model as the other methods made to
    forget.

    Args:
        setup: What is known of the stream.
        mask: ``"off"``: the logit of a hidden class is as that of one never met; ``"least"``: it is the smallest of the
            others', which looks like a class that merely does not fit. A detector's scores become 0 in both.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="mask_logits-v0",
        title="Masked logits (suppression)",
        family="baseline",
        modalities=("image", "detection"),
        departs="Not a method: it shows which numbers a mask can fool.",
    )

    def __init__(
        self, setup: Setup, *, mask: str = "off", r: int = 8, lr: float | None = None, ensemble: bool = True
    ) -> None:
        """Put adapters on both encoders; hide nothing."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=1e-3), ensemble=ensemble)
        if mask not in MASKS:
            raise SettingError(f"Expected mask to be one of {MASKS}; got {mask!r}. Choose one of these.")
        self.mask = mask
        self.lora = self.adapt(r=r)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned and start from a fresh adapter."""
        return [self.merge_and_renew()]

    def erase(self, event: Erase) -> None:
        """Look at nothing; the mask is in place since the request."""

    def answer(self, event: Query) -> Answer:
        """Return log-probabilities ``(B, C)`` or detections ``(B, Q, 4 + C)``, those of hidden classes replaced."""
        said = torch.as_tensor(super().answer(event))
        hidden = torch.tensor([name in self.erasing.gone for name in event.candidates])
        if event.wants == "boxes":
            said[..., 4:][..., hidden] = 0.0
            return said.numpy()
        if hidden.all():
            return torch.full_like(said, -math.log(len(hidden))).numpy()
        if not hidden.any():
            return said.numpy()
        least = said[:, ~hidden].min(dim=1, keepdim=True).values
        said[:, hidden] = least.expand(-1, int(hidden.sum())) if self.mask == "least" else UNMET
        return said.log_softmax(dim=-1).numpy()
