"""SimpleCIL: the mean feature of each class, and nothing learned; what every method on frozen features must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import Answer, Query, TaskStart
from clgym.head import UNMET
from clgym.once import Once


class SimpleCIL(Once):
    """Class means of frozen features, compared by cosine (SimpleCIL, arXiv:2303.07338).

    A class is the mean of the features of its training images; a question goes to the class of the nearest mean,
    by cosine. A class that was never taught gets no probability, on CLIP too, whose texts are not read; if no
    candidate was taught all are equally likely.

    Args:
        setup: What is known of the stream.
        temperature: Of the softmax over cosines, above 0; it changes no ranking.

    Raises:
        SettingError: The temperature is out of range.
    """

    spec = AgentSpec(
        id="simplecil-v0",
        title="SimpleCIL (frozen features and class means)",
        paper="arXiv:2303.07338",
        code="github.com/sun-hailong/LAMDA-PILOT@3450184",
        family="baseline",
        departs=(
            "A sample counts once, as it is first shown; the code passes once over images as they are. On CLIP "
            "the features are the projected ones, of length 1. The temperature is not the paper's, which only ranks."
        ),
    )

    def __init__(self, setup: Setup, *, temperature: float = 0.05) -> None:
        """Start without classes."""
        super().__init__(setup)
        if temperature <= 0:
            raise SettingError(f"Expected temperature above 0; got {temperature}. Try 0.05.")
        self.temperature = temperature
        self.head = None  # the means are the classifier
        self.columns: dict[str, int] = {}  # a class, by its first prompt, to its row of the sums
        self.sums = torch.zeros(0, self.backbone.embed_dim, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(0, dtype=torch.int64, device=self.device)

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Give each new class a row of zeros; nothing is trained by gradient."""
        for texts in task.prompts:
            self.columns.setdefault(texts[0], len(self.columns))
        new = len(self.columns) - len(self.counts)
        self.sums, self.counts = F.pad(self.sums, (0, 0, 0, new)), F.pad(self.counts, (0, new))
        return ()

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Add the features of the samples of a batch."""
        rows = torch.tensor([self.columns[texts[0]] for texts in self._now().prompts], device=self.device)[targets]
        with self.autocast:
            features = self.backbone.encode_images(images)
        self.sums.index_add_(0, rows, features.double())
        self.counts.index_add_(0, rows, torch.ones_like(rows))

    @torch.inference_mode()
    def answer(self, event: Query) -> Answer:
        """Return log-probabilities over the candidates, float32 ``(B, C)``."""
        images, _ = self.to_device(event.inputs, None)
        rows = torch.tensor([self.columns.get(texts[0], -1) for texts in event.prompts], device=self.device)
        taught = (rows >= 0) & (F.pad(self.counts, (0, 1))[rows] > 0)  # row -1 is the padding
        with self.autocast:
            features = F.normalize(self.backbone.encode_images(images), dim=-1)
        logits = torch.full((len(images), len(rows)), UNMET, device=self.device)
        # The mean and the sum have one direction.
        logits[:, taught] = features @ F.normalize(self.sums[rows[taught]], dim=-1).float().T / self.temperature
        return logits.log_softmax(dim=-1).cpu().numpy()

    def footprint(self) -> Footprint:
        """Count the class means: the classifier is the method."""
        return Footprint(stored=self.sums.numel(), added_at_inference=self.sums.numel())

    def tensors(self) -> dict[str, Tensor]:
        """Return the ids shown, sums and counts."""
        return super().tensors() | {"sums": self.sums, "counts": self.counts}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned, as copies: learning writes into them."""
        super().restore(tensors)
        self.sums = tensors["sums"].to(self.device, copy=True)
        self.counts = tensors["counts"].to(self.device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Add the name of every class, in the order of the rows."""
        return super().state_dict() | {"columns": list(self.columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the classes last: restoring the task enters its own."""
        super().load_state_dict(state)
        self.columns = {name: row for row, name in enumerate(state["columns"])}
