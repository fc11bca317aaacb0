"""AdamW with a proximal step, for parameters that lie in one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from clgym.ops import adamw_prox_


class AdamWProx(torch.optim.Optimizer):
    """AdamW, then a soft threshold on a stretch of a flat parameter: one operation for a whole arena.

    A group of one parameter is stepped by :func:`clgym.ops.adamw_prox_`; a group of several, as full fine-tuning has,
    by torch's fused AdamW, and is not thresholded. States are those of ``torch.optim.AdamW``.

    Each group has, beside ``lr`` and the rest, ``kappa`` (the threshold, 0 for none), ``start`` and ``stop`` (the
    stretch) and ``groups`` (see :func:`clgym.ops.group_segments`); a schedule sets ``kappa`` before a step.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.

    Example:
        >>> arena = torch.nn.Parameter(torch.tensor([1.0, 0.1]))
        >>> optimizer = AdamWProx([arena], lr=0.05)
        >>> optimizer.param_groups[0] |= {"kappa": 0.1, "start": 1}
        >>> arena.grad = torch.ones(2)
        >>> optimizer.step()
        >>> arena.detach()
        tensor([0.9500, 0.0000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Start without a threshold."""
        prox = {"kappa": 0.0, "start": 0, "stop": None, "groups": None}
        # "fused" makes torch restore the count of steps as the fp32 tensor on the device that it is.
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True}
        super().__init__(params, settings | prox)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step with the gradients at hand; parameters without one stay.

        Raises:
            SettingError: A threshold is negative.
        """
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in trained if p.grad is not None]
            states = [self._slots(p) for p in trained]
            shared: dict[str, Any] = {name: group[name] for name in ("lr", "eps", "weight_decay")}
            if len(trained) == 1:
                first, second, count = states[0]
                shared |= {name: group[name] for name in ("betas", "kappa", "start", "stop", "groups")}
                adamw_prox_(trained[0], grads[0], first, second, count, **shared)
            elif trained:
                moments = [list(each) for each in zip(*states, strict=True)]
                beta1, beta2 = group["betas"]
                adamw(
                    *(trained, grads, moments[0], moments[1], [], moments[2]),
                    **{"fused": True, "amsgrad": False, "maximize": False, "beta1": beta1, "beta2": beta2, **shared},
                )

    def _slots(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return both moments and the count of steps."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimizer keeps of its parameters, by ``"<number>.<name>"``."""
    kept = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, slots in kept.items() for name, value in slots.items()}


def load_moments(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Take back what :func:`moments` returned of an optimizer over the same parameters."""
    kept: dict[int, dict[str, Any]] = {}
    for key, value in stored.items():
        number, _, name = key.partition(".")
        kept.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
