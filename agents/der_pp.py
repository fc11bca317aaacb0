"""DER++: rehearse stored samples with their labels, and with what the model said of them when they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.memory import SampleMemory


class DERPlusPlus(Learner):
    """Dark experience replay with labels (DER++, arXiv:2004.07211), on merged LoRA.

    ``CE(x, y) + alpha * |h(x') - z'|^2 / C + beta * CE(x'', y'')``: the current batch, and two batches drawn each on
    its own from a reservoir, whose logits ``z'`` are those of the moment when the sample was stored, along the
    whole of training. Where the stream hides the task, all are classified among the classes of all tasks so far,
    and ``z'`` is compared over those that were known when it was stored. Elsewhere tasks have label spaces of
    their own: a batch from the memory is of one task, and classes and logits are that task's.

    Args:
        setup: What is known of the stream.
        size: Samples held in the memory.
        alpha: Weight of the squared distance to the stored logits.
        beta: Weight of the stored labels' cross-entropy; 0 is DER.
        r: Rank of every adapter.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 2e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="der_pp-v0",
        title="Dark experience replay (DER++)",
        paper="arXiv:2004.07211",
        code="github.com/aimagelab/mammoth@0151ba0",
        family="replay",
        departs=(
            "The paper's head has all classes from the start; here classes come with their tasks, and logits are "
            "compared over those that both models knew. Where tasks have label spaces of their own, a batch from the "
            "memory is of one task, drawn uniformly; the paper mixes tasks. The learner is a merged LoRA."
        ),
        stores_samples=True,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        size: int = 200,
        alpha: float = 0.3,
        beta: float = 0.5,
        r: int = 16,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start with an empty memory."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=2e-3), ensemble=ensemble)
        if size < 1 or min(alpha, beta) < 0:
            raise SettingError(
                f"Expected size of 1 or more, and alpha and beta of 0 or more; got {size}, {alpha} and {beta}. "
                "Try 200, 0.3 and 0.5."
            )
        self.alpha, self.beta = alpha, beta
        self.memory = SampleMemory(size, self.generator, distinct=False)
        self.lora = self.adapt(r=r)
        self._said = torch.empty(0)  # logits of the batch at hand

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Merge what the last task learned, start from a fresh adapter, and make room for the new classes' logits."""
        self.memory.begin_task(task.prompts)
        self.memory.widen("logits", self._width())
        return [self.merge_and_renew()]

    def _width(self) -> int:
        """Return how many logits the memory holds of a sample, those without a class included."""
        if self._now().task is None:
            return len(self.memory.union()[0])
        return max(len(prompts) for prompts in self.memory.prompts)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the current batch's cross-entropy, and what is rehearsed."""
        hidden, prompts = self._now().task is None, self._now().prompts
        if hidden:
            prompts, places = self.memory.union()
            targets = places[-1].to(self.device)[targets]
        rows = self.training_rows(prompts)
        logits = self.logits(images, rows)
        loss = F.cross_entropy(logits, targets)
        self._said = logits.detach()
        for weight, dark in ((self.alpha, True), (self.beta, False)):
            drawn = self.memory.rows(len(images), mixed=hidden)
            if weight and len(drawn):
                loss = loss + weight * self.rehearse(drawn, rows if hidden else None, dark=dark)
        return loss

    def rehearse(self, drawn: Tensor, rows: Tensor | None, *, dark: bool) -> Tensor:
        """Return the loss of some of the memory's samples.

        Args:
            drawn: Which, int64 ``(B,)``; of one task, if there are no rows.
            rows: Rows of the classes of all tasks, see :meth:`training_rows`; without them, the samples' own task's.
            dark: Against the stored logits rather than the labels.
        """
        memory = self.memory
        if rows is None:
            labels = memory["targets"][drawn]
            rows = self.training_rows(memory.prompts[int(memory["tasks"][drawn[0]])])
        else:
            labels, _ = memory.among_all(drawn)
        logits = self.logits(memory["images"][drawn].to(self.device), rows)
        if dark:
            return stored_distance(logits, memory["logits"][drawn, : len(rows)].to(self.device))
        return F.cross_entropy(logits, labels.to(self.device))

    def learn(self, event: Train) -> None:
        """Take one step, then offer the batch to the memory with what was said of it."""
        super().learn(event)
        said = self._said.float().cpu()
        logits = F.pad(said, (0, self._width() - said.shape[1]), value=torch.nan)
        self.memory.add(*(torch.from_numpy(a) for a in (event.inputs, event.targets, event.ids)), logits=logits)

    def footprint(self) -> Footprint:
        """Add the stored samples, and count their logits as stored."""
        logits = self.memory["logits"].numel() if len(self.memory) else 0
        return Footprint(super().footprint().trainable, stored=logits, sample_bytes=self.memory.sample_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Add the memory."""
        return super().state_dict() | self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the memory last: restoring the task opens it anew."""
        super().load_state_dict(state)
        self.memory.load_state_dict(state)


def stored_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """Return the mean squared distance of logits ``(B, C)`` to stored ones, over those that are not NaN.

    >>> stored_distance(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [0.0, torch.nan]]))
    tensor(4.6667)
    """
    known = ~stored.isnan()
    return torch.where(known, logits - stored, 0.0).square().sum() / known.sum()
