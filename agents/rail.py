"""RAIL: ridge regression on frozen CLIP features, solved recursively, beside an untouched zero-shot model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import Answer, Query, TaskStart
from clgym.once import Once

PAPER_WIDTH, TINY_WIDTH = 15_000, 1_000


class RAIL(Once):
    """Regression-based analytic incremental learning, primal form (arXiv:2406.18868).

    An image's unit feature ``x`` is expanded to ``phi = relu(U x)`` by a fixed random ``U``. The adapter
    ``W = (Phi^T Phi + ridge I)^-1 Phi^T Y``, over all samples and one-hot labels so far, is updated from each
    batch by the recursion of :func:`absorb`, with the same result as if all were solved at once: there is no
    forgetting in it. At inference zero-shot CLIP decides: where its best class has been taught, the scores
    ``(1 - fusion) softmax(zero-shot) + fusion phi W`` of the classes taught answer; else zero-shot does. Hence
    accuracy on what is yet to be taught is exactly zero-shot's.

    Args:
        setup: What is known of the stream.
        width: Length of ``phi``; 0 is 15,000 on a real model and 1,000 on the tiny CLIP, whose features have 64
            numbers rather than 512. Time and state grow with its square.
        ridge: Weight of the ridge penalty, above 0.
        fusion: Share of the adapter in the scores, in [0, 1].
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="rail-v0",
        title="RAIL-Primal",
        paper="arXiv:2406.18868",
        code="github.com/linghan1997/Regression-based-Analytic-Incremental-Learning@a0ecaef",
        family="representation",
        departs=(
            "Fusion is among the classes taught only; the released code adds zeros for all others, so that one of them "
            "may win. A class is known by its prompts, so the method also runs where candidates are one task's. Solved "
            "in fp64, batch by batch from the start; the code inverts the first task's matrix and goes on in fp32. A "
            "sample counts once, as it is first shown; the code's data set is passed once. Classes have the templates "
            "of the scenario; RAIL has one for all. Log-probabilities are a softmax of the fused scores at CLIP's "
            "temperature: only their order is the paper's. That commit's configuration fuses 0.9."
        ),
        mergeable=False,
        needs_text=True,
    )

    def __init__(
        self, setup: Setup, *, width: int = 0, ridge: float = 0.1, fusion: float = 0.8, ensemble: bool = True
    ) -> None:
        """Draw the expansion; no class is known yet."""
        super().__init__(setup, ensemble=ensemble)
        if width < 0 or ridge <= 0 or not 0 <= fusion <= 1:
            raise SettingError(
                f"Expected width of 0 or more, ridge above 0 and fusion in [0, 1]; got {width}, {ridge} and {fusion}. "
                "The paper has 15000, 0.1 and 0.8."
            )
        self.fusion = fusion
        width = width or (TINY_WIDTH if setup.backbone.startswith("embedded/") else PAPER_WIDTH)
        d = self.backbone.embed_dim
        drawn = torch.rand(width, d, generator=self.generator, dtype=torch.float64)
        self.expansion = ((2 * drawn - 1) / d**0.5).to(self.device)  # nn.Linear's own start, as in the code
        self.inverse = torch.eye(width, dtype=torch.float64, device=self.device) / ridge
        self.weights = torch.zeros(width, 0, dtype=torch.float64, device=self.device)
        self.columns: dict[tuple[str, ...], int] = {}  # a class, by its prompts, to its column of the weights

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Give each new class a column of zeros; nothing is trained by gradient."""
        for prompts in task.prompts:
            self.columns.setdefault(prompts, len(self.columns))
        new = len(self.columns) - self.weights.shape[1]
        self.weights = torch.cat([self.weights, self.weights.new_zeros(len(self.weights), new)], dim=1)
        return ()

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Solve again with the samples of a batch, by :func:`absorb`."""
        columns = torch.tensor([self.columns[prompts] for prompts in self._now().prompts], device=self.device)
        labels = self.weights.new_zeros(len(images), len(self.columns))
        labels[torch.arange(len(images), device=self.device), columns[targets]] = 1.0
        with self.autocast:
            features = self.backbone.encode_images(images)
        absorb(self.inverse, self.weights, self.expand(features), labels)

    def expand(self, features: Tensor) -> Tensor:
        """Return ``relu(U x)``, fp64 ``(B, width)``, of unit features ``(B, d)``."""
        expanded: Tensor = (features.double() @ self.expansion.T).relu()
        return expanded

    @torch.inference_mode()
    def answer(self, event: Query) -> Answer:
        """Return log-probabilities over the candidates, float32 ``(B, C)``; ``-inf`` where the adapter leaves out."""
        images, _ = self.to_device(event.inputs, None)
        with self.autocast:
            features = self.backbone.encode_images(images)
            logits = self.scale * features @ self.class_rows(event.prompts, self.ensemble).T
        logits = logits.float()
        columns = torch.tensor([self.columns.get(prompts, -1) for prompts in event.prompts], device=self.device)
        taught = columns >= 0
        if taught.any():
            scores = (1 - self.fusion) * logits.double().softmax(dim=-1)
            scores[:, taught] += self.fusion * (self.expand(features) @ self.weights)[:, columns[taught]]
            fused = (self.scale * scores).masked_fill(~taught, -torch.inf).float()
            logits = torch.where(taught[logits.argmax(dim=-1)][:, None], fused, logits)
        return logits.log_softmax(dim=-1).cpu().numpy()

    def footprint(self) -> Footprint:
        """Count the adapter's weights as trained, the inverse as stored, and the expansion at inference."""
        weights = self.weights.numel()
        return Footprint(weights, weights + self.inverse.numel(), weights + self.expansion.numel())

    def tensors(self) -> dict[str, Tensor]:
        """Return the ids shown, the inverse and the weights; the expansion follows from the seed."""
        return super().tensors() | {"inverse": self.inverse, "weights": self.weights}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned, as copies: learning writes into them."""
        super().restore(tensors)
        self.inverse = tensors["inverse"].to(self.device, copy=True)
        self.weights = tensors["weights"].to(self.device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Add the prompts of every class, in the order of the columns."""
        return super().state_dict() | {"columns": list(self.columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the classes last: restoring the task enters its own."""
        super().load_state_dict(state)
        self.columns = {tuple(prompts): column for column, prompts in enumerate(state["columns"])}


@torch.no_grad()
def absorb(inverse: Tensor, weights: Tensor, features: Tensor, labels: Tensor) -> None:
    """Update a ridge regression by a batch, in place, exactly (arXiv:2406.18868, theorem 1).

    With ``M = (Phi^T Phi + ridge I)^-1`` and ``K = M phi^T (I + phi M phi^T)^-1`` the recursion is
    ``M <- M - K phi M`` and ``W <- W + K (Y - phi W)``, Woodbury's identity.

    Args:
        inverse: ``M``, fp64 ``(D, D)``; the identity over the ridge before any data.
        weights: ``W``, fp64 ``(D, C)``; zero for classes without data so far.
        features: ``phi``, fp64 ``(B, D)``.
        labels: ``Y``, one-hot, fp64 ``(B, C)``.

    Example:
        >>> M, W = torch.eye(1, dtype=torch.float64) / 0.5, torch.zeros(1, 1, dtype=torch.float64)
        >>> absorb(M, W, torch.full((1, 1), 2.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
        >>> round(float(W), 4)  # 2 / (2 * 2 + 0.5)
        0.4444
    """
    half = features @ inverse  # (B, D), phi M
    spread = half @ features.T
    spread.diagonal().add_(1.0)
    gain = torch.cholesky_solve(half, torch.linalg.cholesky(spread)).T  # (D, B)
    inverse.addmm_(gain, half, alpha=-1)
    weights.addmm_(gain, labels - features @ weights)
