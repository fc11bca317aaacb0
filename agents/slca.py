"""SLCA: fine-tune the backbone slowly, and set the classes' rows right against each other after each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.head import GrowingHead
from clgym.learner import Learner, learning_rate
from clgym.tuning import grouped, regrouped, tune_encoders

JITTER = 1e-4  # added to the diagonal of a covariance, as in the released code
BATCH = 256  # features drawn per class in each epoch of the alignment, and of a step


class SLCA(Learner):
    """Slow learner with classifier alignment (SLCA, arXiv:2303.05118).

    *Slow learner*: all weights are fine-tuned, the backbone's at a small share ``slow`` of the head's learning rate.
    *Classifier alignment*: each class is kept as a Gaussian of its features at the end of its task. After each task
    from the second on, features are drawn from the Gaussians of all classes so far, and the whole head is trained
    on them by ``CE(H / (temperature * mean_k |H_k|))``, where ``H`` are the logits and ``H_k`` those of task ``k``'s
    classes. The aligned head answers; the next task goes on with the head from before the alignment.

    On CLIP the classifier is the text encoder, whose rows are not weights that could be aligned: what is left there
    is the slow learner.

    Args:
        setup: What is known of the stream.
        slow: Learning rate of the backbone, as a share of the head's; above 0.
        epochs: Epochs of the alignment, with 256 features of every class each; 0 is without.
        temperature: Of the normalised logits, above 0; 0 aligns plain logits.
        align_lr: Learning rate of the alignment, by SGD with momentum and a cosine.
        shrink: The mean of the oldest task's classes is multiplied by about ``1 - shrink`` as features are drawn, that
            of the newest by 1, and linearly between, as in the released code.
        share: Share of a task's last steps whose features make the Gaussians, in (0, 1].
        targets: Which encoders are trained: ``"all"``, ``"vision"`` or ``"text"``.
        lr: Peak learning rate of AdamW for the head; ``None`` is 1e-3 on a real model, 1e-2 on the tiny ViT and
            1e-3 on the tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="slca-v0",
        title="Slow learner with classifier alignment",
        paper="arXiv:2303.05118",
        code="github.com/GengDavid/SLCA@d5eecd8",
        family="representation",
        departs=(
            "AdamW with a cosine, at learning rates of its own, where the code has SGD with steps. A stream does not "
            "come back, so Gaussians are made of the features of a task's last steps as they pass, at the weights of "
            "that moment; a class that has none there is not aligned. On CLIP there is no head to align."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        slow: float = 0.01,
        epochs: int = 5,
        temperature: float = 0.1,
        align_lr: float = 0.01,
        shrink: float = 0.1,
        share: float = 0.2,
        targets: Encoders = "all",
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Free the encoders; no class is known yet."""
        rate = learning_rate(lr, setup, real=1e-3, tiny=1e-3 if setup.reads_text else 1e-2)
        if min(slow, align_lr) <= 0 or min(epochs, temperature) < 0 or not 0 <= shrink < 1 or not 0 < share <= 1:
            raise SettingError(
                "Expected slow and align_lr above 0, epochs and temperature of 0 or more, shrink in [0, 1) and share "
                f"in (0, 1]; got {slow}, {align_lr}, {epochs}, {temperature}, {shrink} and {share}. The code has 0.01, "
                "0.01, 5, 0.1, 0.1 and all."
            )
        super().__init__(setup, lr=rate * slow, ensemble=ensemble)
        self.head_share, self.moves_rows = 1 / slow, True
        self.epochs, self.temperature, self.align_lr = epochs, temperature, align_lr
        self.shrink, self.share = shrink, share
        self.weights = tune_encoders(self.backbone.model, targets)
        self.text_trains = targets != "vision" and setup.reads_text
        self.gaussians: dict[str, tuple[Tensor, Tensor]] = {}  # mean (d,) and Cholesky factor (d, d), by class name
        self.moments: dict[str, Tensor] = {}  # of the task at hand: counts (C,), sums (C, d) and squares (C, d, d)
        self.unaligned: list[Tensor] = []  # the head's blocks from before the alignment
        self.learned = 0

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Go on with the head from before the alignment."""
        self._recall()
        classes, d = len(task.classes), self.backbone.embed_dim
        if self.head is not None:
            shapes = {"counts": (classes,), "sums": (classes, d), "squares": (classes, d, d)}
            zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
            self.moments = {name: value.to(self.device) for name, value in zeros.items()}
        return self.weights.parameters

    @torch.no_grad()
    def _recall(self) -> None:
        if self.head is not None:
            for block, rows in zip(self.head.blocks, self.unaligned, strict=False):
                block.copy_(rows)
        self.unaligned = []

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes, and note the features near the task's end."""
        z = self.backbone.encode_images(images)  # (B, d)
        if self.head is not None and self.step + 1 > (1 - self.share) * self.steps:
            self._note(z.detach().double(), targets)
        return self.against_labels(self.classify(z, self.training_rows(self._now().prompts)), targets)

    def _note(self, z: Tensor, targets: Tensor) -> None:
        for c in torch.unique(targets).tolist():
            of_class = z[targets == c]
            self.moments["counts"][c] += len(of_class)
            self.moments["sums"][c] += of_class.sum(0)
            self.moments["squares"][c] += of_class.T @ of_class

    def end(self) -> None:
        """Keep the task's classes as Gaussians, and from the second task on align the head."""
        if self.head is None:
            return
        for c, texts in enumerate(self._now().prompts):
            if self.moments["counts"][c]:
                self.gaussians[texts[0]] = gaussian(*(self.moments[name][c] for name in ("counts", "sums", "squares")))
        self.unaligned = [block.detach().clone() for block in self.head.blocks]
        self.learned += 1
        if self.learned > 1 and self.epochs:
            self.align(self.head)

    def align(self, head: GrowingHead) -> None:
        """Train the whole head on features drawn from the Gaussians of all classes."""
        names = list(self.gaussians)
        task = {name: k for k, group in enumerate(head.groups) for name in group}
        of = F.one_hot(torch.tensor([task[name] for name in names])).float().to(self.device)  # (C, tasks)
        of = of[:, of.any(dim=0)]
        faded = 1 - self.shrink * (1 - (of.argmax(dim=1) + 1) / of.shape[1])  # (C,)
        means = torch.stack([self.gaussians[name][0] for name in names]) * faded[:, None]
        factors = torch.stack([self.gaussians[name][1] for name in names])
        optimizer = torch.optim.SGD(head.blocks.parameters(), lr=self.align_lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        for _ in range(self.epochs):
            drawn = torch.randn(len(names), BATCH, means.shape[1], generator=self.generator).to(self.device)
            features = (means[:, None] + drawn @ factors.mT).flatten(0, 1)
            order = torch.randperm(len(features), generator=self.generator).to(self.device)
            for chosen in torch.split(order, BATCH):
                logits = normalised(self.classify(features[chosen], head.rows(names)), of, self.temperature)
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(logits, chosen // BATCH))
                optimizer.step()
            schedule.step()

    def footprint(self) -> Footprint:
        """Count all weights as trained, and the Gaussians as stored."""
        stored = sum(mean.numel() + factor.numel() for mean, factor in self.gaussians.values())
        return Footprint(trainable=self.weights.count, stored=stored)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, the Gaussians, what is noted of the task at hand, and the head before the alignment."""
        means, factors = ({str(i): pair[k] for i, pair in enumerate(self.gaussians.values())} for k in (0, 1))
        before = {str(i): rows for i, rows in enumerate(self.unaligned)}
        count = {"learned": torch.tensor(self.learned)}
        groups = {"mean": means, "factor": factors, "moment": self.moments, "unaligned": before, "count": count}
        return grouped(weight=self.weights.views(), **groups)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back; the Gaussians have numbers for names so far."""
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.moments, self.learned = groups["moment"], int(groups["count"]["learned"])
        self.unaligned = [groups["unaligned"][str(i)] for i in range(len(groups["unaligned"]))]
        self.gaussians = {i: (groups["mean"][i], groups["factor"][i]) for i in groups["mean"]}

    def state_dict(self) -> dict[str, Any]:
        """Add the names of the Gaussians' classes."""
        return super().state_dict() | {"gaussians": list(self.gaussians)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the head as it was, and the names of the Gaussians' classes."""
        self.unaligned = []
        super().load_state_dict(state)
        self.gaussians = {name: self.gaussians[str(i)] for i, name in enumerate(state["gaussians"])}


def gaussian(count: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean ``(d,)`` and a Cholesky factor of the covariance ``(d, d)`` of some features, fp32.

    Args:
        count: Number of features, above 0.
        total: Their sum, fp64 ``(d,)``.
        squares: The sum of ``z z^T``, fp64 ``(d, d)``.
    """
    mean = total / count
    covariance = (squares - count * mean.outer(mean)) / (count - 1).clamp_min(1)
    covariance.diagonal().add_(JITTER)
    return mean.float(), torch.linalg.cholesky(covariance).float()


def normalised(logits: Tensor, of: Tensor, temperature: float) -> Tensor:
    """Return ``H / (temperature * mean_k |H_k|)``, where ``H_k`` are the logits of task ``k``'s classes.

    Args:
        logits: ``H``, ``(B, C)``.
        of: 1 where a class is of a task, ``(C, tasks)``.
        temperature: 0 returns the logits as they are.

    Example:
        >>> normalised(torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 0.5)
        tensor([[2.0000, 2.6667, 0.6667]])
    """
    if not temperature:
        return logits
    norms = (logits.square() @ of + 1e-14).sqrt().mean(dim=1, keepdim=True)
    return logits / norms / temperature
