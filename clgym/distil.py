"""Losses that hold a model to what a teacher says."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the cross-entropy to the teacher's softened distribution, averaged over rows.

    ``T^2 CE(softmax(teacher / T), softmax(student / T))`` (Hinton et al. 2015, arXiv:1503.02531). At the teacher
    the gradient is zero, and the loss is ``T^2`` times the entropy of the teacher.

    Args:
        student: Logits ``(B, C)``.
        teacher: Logits ``(B, C)``; no gradient reaches them.
        temperature: ``T``, above 0; higher makes small probabilities count more.

    Example:
        >>> import torch
        >>> distillation(torch.zeros(1, 2), torch.zeros(1, 2), temperature=1.0)
        tensor(0.6931)
    """
    soft = (teacher.detach() / temperature).softmax(dim=-1)
    return temperature**2 * F.cross_entropy(student / temperature, soft)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared Euclidean distance of features ``(B, d)``, averaged over rows.

    >>> import torch
    >>> feature_distance(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2))
    tensor(12.5000)
    """
    return (student - teacher.detach()).square().sum(dim=-1).mean()


def sigmoid_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the binary cross-entropy of a sigmoid per class, summed over classes and averaged over rows.

    With one-hot shares it is the class loss of LwF.MC (Rebuffi et al. 2017, arXiv:1611.07725), with a teacher's
    sigmoids its distillation.

    Args:
        logits: ``(B, C)``.
        shares: In [0, 1], ``(B, C)``; no gradient reaches them.

    Example:
        >>> import torch
        >>> sigmoid_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.5]])) / torch.tensor(2.0).log()
        tensor(3.)
    """
    return F.binary_cross_entropy_with_logits(logits, shares.detach(), reduction="sum") / len(logits)
