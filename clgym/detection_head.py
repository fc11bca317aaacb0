"""The classifier of a detector's slots, and the loss of what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.detector import Detector
from clgym.errors import RecordError
from clgym.head import UNMET, GrowingHead

# Weights of DETR (arXiv:2005.12872, appendix A.4) and YOLOS: of the matching, and of the loss.
_WEIGHTS = {
    "class_cost": 1.0,
    "bbox_cost": 5.0,
    "giou_cost": 2.0,
    "eos_coefficient": 0.1,
    "bbox_loss_coefficient": 5.0,
    "giou_loss_coefficient": 2.0,
    "auxiliary_loss": False,
}


class DetectionHead(GrowingHead):
    """A row per class, as in any growing head, and one for slots that hold nothing; it begins with the model's own.

    Features carry the box of their slot behind them, and logits before them.

    Args:
        dim: Length of the features, boxes not counted.
        device: Where the rows are.
        names: Classes that the pre-trained model knows.
        rows: Their rows and, last, that of nothing, ``(len(names) + 1, dim + 1)``.

    Example:
        >>> head = DetectionHead(2, torch.device("cpu"), ["cat"], torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
        >>> slot = torch.tensor([[[3.0, 0.0, 0.5, 0.5, 0.1, 0.1]]])
        >>> head.classify(slot, head.rows(["cat"])).tolist()[0][0][4:]
        [3.0, 0.0]
    """

    def __init__(self, dim: int, device: torch.device, names: Sequence[str], rows: Tensor) -> None:
        """Begin with the given classes."""
        super().__init__(dim, device)
        self.own = tuple(names), rows
        self.nothing = nn.Parameter(rows[-1:].clone().to(device))
        if len(names):
            self._append(names, rows[:-1].clone().to(device))

    def empty(self) -> DetectionHead:
        """Return a head as this one was at the start."""
        return DetectionHead(self.dim, self.device, *self.own)

    def trained(self) -> list[nn.Parameter]:
        """Return what a learner trains beside its method."""
        return [*super().trained(), self.nothing]

    def classify(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return boxes and logits ``(B, Q, 4 + C + 1)`` of slots ``(B, Q, dim + 4)`` over rows ``(C, dim + 1)``.

        The last logit is that of nothing.
        """
        seen, boxes = torch.split(features, [self.dim, 4], dim=-1)
        every = torch.cat([rows, self.nothing])
        return torch.cat([boxes, F.linear(seen, every[:, :-1], every[:, -1])], dim=-1)

    def unmet(self, images: int, classes: int) -> Tensor:
        """Return what is answered about classes none of which has a row: one slot each, which holds nothing."""
        out = torch.full((images, 1, 4 + classes + 1), UNMET, device=self.device)
        out[..., :4], out[..., -1] = 0.5, 0.0
        return out

    def spread(self, logits: Tensor, met: Tensor) -> Tensor:
        """Return ``(B, Q, 4 + C + 1)``, where only the classes ``met``, bool ``(C,)``, have a logit in ``logits``."""
        out = logits.new_full((*logits.shape[:-1], 4 + len(met) + 1), UNMET)
        out[..., :4], out[..., -1] = logits[..., :4], logits[..., -1]
        out[..., 4:-1][..., met] = logits[..., 4:-1]
        return out

    def answer(self, logits: Tensor) -> Tensor:
        """Return detections ``(B, Q, 4 + C)``: boxes, and the probability of each class beside that of nothing."""
        return torch.cat([logits[..., :4], logits[..., 4:].softmax(-1)[..., :-1]], dim=-1).clamp(0, 1)

    def loss(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Return the set loss of DETR (arXiv:2005.12872, section 3.1), as ``transformers`` computes it.

        Objects are matched to slots at the least cost. The loss is the cross-entropy of all slots, with weight 0.1 on
        those that are to hold nothing, plus 5 times the L1 distance and 2 times the generalized IoU loss of matched
        boxes, per object.

        Args:
            logits: ``(B, Q, 4 + C + 1)``, see :meth:`classify`.
            boxes: float ``(B, M, 5)``: class, or -1 in rows without an object; then a box.
        """
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

        there = boxes[..., 0] >= 0
        labels = [
            {"class_labels": row[mask, 0].long(), "boxes": row[mask, 1:]}
            for row, mask in zip(boxes, there, strict=True)
        ]
        config = SimpleNamespace(**_WEIGHTS, num_labels=logits.shape[-1] - 5)
        loss: Tensor
        loss, _, _ = ForObjectDetectionLoss(  # type: ignore[no-untyped-call]
            logits[..., 4:].float(), labels, logits.device, logits[..., :4].float(), config
        )
        return loss

    def state(self) -> dict[str, Tensor]:
        """Return the blocks by number, and the row of nothing."""
        return super().state() | {"nothing": self.nothing.detach()}

    def restore(self, groups: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
        """Start anew with blocks of these names and rows, and this row of nothing.

        Raises:
            RecordError: Names and rows do not fit each other, or the features' length, or a row is missing.
        """
        blocks = {name: block for name, block in tensors.items() if name != "nothing"}
        if len(blocks) == len(tensors):
            raise RecordError(
                f"Expected the row of nothing of a detector's head; got {sorted(tensors)[:3]} alone. "
                "Restore the state of the same agent on the same backbone."
            )
        super().restore(groups, blocks)
        with torch.no_grad():
            self.nothing.copy_(tensors["nothing"])


def head_for(backbone: Detector | object, dim: int, device: torch.device) -> GrowingHead:
    """Return the head that a learner has beside a backbone without a text encoder."""
    if isinstance(backbone, Detector):
        # COCO's numbering has gaps, which models call "N/A".
        own = {name: number for number, name in reversed([*enumerate(backbone.classes)]) if name != "N/A"}
        numbers = sorted(own.values())
        rows = backbone.rows()[[*numbers, -1]]
        return DetectionHead(dim, device, [backbone.classes[number] for number in numbers], rows)
    return GrowingHead(dim, device)
