"""The loss of CoDyRA and MoRA on CLIP: images choose their class, and classes their images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from clgym.agent import EMBEDDED_CLIP, Setup


def two_way_loss(logits: Tensor, targets: Tensor, old_classes: int, text_to_image: float) -> Tensor:
    """Return ``CE(image -> text) + weight * CE(text -> image)`` over the classes at hand.

    The second term is, for each class, the soft cross-entropy of its softmax over the batch's images against a 0/1 row
    that is 1 at its own images, not normalised, and averaged over the rows of old and new classes alike
    (arXiv:2412.01004, released code; the same in arXiv:2506.21035's). Rows of old and of absent classes match no image,
    so they count in the average only.

    Args:
        logits: ``(B, C)``.
        targets: int64 ``(B,)``.
        old_classes: Number of classes learned before.
        text_to_image: Weight of the second term; 0 leaves it out.

    Example:
        >>> import torch
        >>> even, targets = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> two_way_loss(even, targets, old_classes=2, text_to_image=1.0) / torch.tensor(2.0).log()
        tensor(1.5000)
    """
    loss = F.cross_entropy(logits, targets)
    if text_to_image:
        classes = logits.shape[1]
        match = F.one_hot(targets, classes).T  # (C, B)
        loss = loss - text_to_image * (match * logits.T.log_softmax(dim=1)).sum() / (old_classes + classes)
    return loss


def text_to_image_weight(weight: float | None, setup: Setup) -> float:
    """Return ``weight``, or where it is ``None`` the method's for the backbone at hand: 1, and 0.2 on the tiny CLIP.

    The term grows with images per class of a batch: 64 images of 1,100 classes by the end of the papers' stream, 32 of
    119 in the embedded one. A fifth keeps the papers' proportion to the first term.
    """
    if weight is not None:
        return weight
    return 0.2 if setup.backbone == EMBEDDED_CLIP else 1.0
