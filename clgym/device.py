"""Where an agent computes and how precisely, by name."""

from __future__ import annotations

import torch

from clgym.errors import SettingError


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is CUDA where there is one.

    Raises:
        SettingError: The name is unknown, or the device is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise SettingError(f"Expected device 'auto', 'cpu' or 'cuda'; got {name!r}. Choose one of these.")
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise SettingError("Expected a CUDA device; got a machine without one. Use device 'auto' or 'cpu'.")
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def pick_precision(name: str) -> bool:
    """Return whether to compute in bfloat16 beside fp32 weights.

    Raises:
        SettingError: The name is unknown.
    """
    if name not in ("fp32", "bf16"):
        raise SettingError(f"Expected precision 'fp32' or 'bf16'; got {name!r}. Choose one of these.")
    return name == "bf16"
