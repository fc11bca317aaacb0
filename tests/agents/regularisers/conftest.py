"""What the weights of regularised methods are compared by."""

from __future__ import annotations

import torch


def furthest(values: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max(float((values[name] - others[name]).abs().max()) for name in values)
