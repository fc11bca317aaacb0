"""Plain weights that a method trains in place: chosen by name, held near earlier values, swapped and stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clgym.attention import Encoders, lora_targets, of_encoder, unfold_attention
from clgym.errors import NotRegisteredError, RecordError

Values = Mapping[str, Tensor]


class Weights:
    """Some parameters ``theta`` of a model, under training.

    Args:
        model: Frozen but for these parameters; must already be on its device.
        names: Names of the parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> weights = Weights(model, ["0.weight"])
        >>> weights.count, [name for name, p in model.named_parameters() if p.requires_grad]
        (6, ['0.weight'])
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Freeze the model and free the chosen."""
        known = dict(model.named_parameters())
        model.requires_grad_(False)
        self._named = {name: known[name] for name in names}
        for p in self._named.values():
            p.requires_grad_(True)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._named)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of their names."""
        return list(self._named.values())

    @property
    def count(self) -> int:
        """Number of scalars."""
        return sum(p.numel() for p in self.parameters)

    def views(self) -> dict[str, Tensor]:
        """Return the values by name; they change with training."""
        return {name: p.detach() for name, p in self._named.items()}

    def copy(self) -> dict[str, Tensor]:
        """Return the values by name as they are now."""
        return {name: value.clone() for name, value in self.views().items()}

    def zeros(self) -> dict[str, Tensor]:
        """Return zeros of the same shapes by name."""
        return {name: torch.zeros_like(value) for name, value in self.views().items()}

    @torch.no_grad()
    def put_(self, values: Values) -> None:
        """Set the values.

        Raises:
            RecordError: A name or a shape is not that of these weights; nothing is changed then.
        """
        mine = self.views()
        odd = sorted(mine.keys() ^ values.keys())
        odd += [name for name in sorted(mine.keys() & values.keys()) if mine[name].shape != values[name].shape]
        if odd:
            raise RecordError(
                f"Expected the values of {len(mine)} trained weights; got other names or shapes: "
                f"{', '.join(odd[:3])} ({len(odd)} in all). Train the same weights of the same model."
            )
        for name, value in values.items():
            mine[name].copy_(value)

    @torch.no_grad()
    def mix_(self, values: Values, share: float) -> None:
        """Set ``theta`` to ``share * theta + (1 - share) * values``; exact at 0 and at 1."""
        for name, p in self._named.items():
            p.copy_(values[name].lerp(p, share))

    @contextmanager
    def replaced(self, values: Values) -> Iterator[None]:
        """Compute with other values for a while, without gradient; nothing is copied."""
        mine = {name: p.data for name, p in self._named.items()}
        self._point_at(values)
        try:
            with torch.no_grad():
                yield
        finally:
            self._point_at(mine)

    def _point_at(self, values: Values) -> None:
        # Autocast keeps low-precision copies of the weights that it has met.
        torch.clear_autocast_cache()
        for name, p in self._named.items():
            p.data = values[name]

    def distance(self, anchor: Values, importance: Values | None = None) -> Tensor:
        """Return ``sum_j F_j (theta_j - theta*_j)^2``, with gradient.

        Args:
            anchor: ``theta*``, by name.
            importance: ``F``, by name; none means all ones.
        """
        total = torch.zeros((), device=self.parameters[0].device)
        for name, p in self._named.items():
            squares = (p - anchor[name]).square()
            total = total + (squares if importance is None else importance[name] * squares).sum()
        return total

    @torch.no_grad()
    def pull_(self, anchor: Values, strength: float, importance: Values | None = None) -> None:
        """Take the proximal step of :meth:`distance`: ``theta* + (theta - theta*) / (1 + 2 strength F)``.

        It minimises ``|theta' - theta|^2 / 2 + strength * distance(theta')``, and is stable however strong.
        """
        for name, p in self._named.items():
            hold = 1 + 2 * strength * (1 if importance is None else importance[name])
            p.copy_(anchor[name] + (p - anchor[name]) / hold)


def tune_encoders(model: nn.Module, encoders: Encoders = "all") -> Weights:
    """Return all weights of one encoder or both; the logit scale stays fixed.

    Args:
        model: An ``open_clip`` or ``timm`` model.
        encoders: ``"all"``, ``"vision"`` or ``"text"``.

    Raises:
        SettingError: ``encoders`` is unknown or not there.
    """
    names = [name for name, _ in model.named_parameters() if name != "logit_scale"]
    return Weights(model, of_encoder(model, names, encoders))


def tune_attention(model: nn.Module, layers: Sequence[str], encoders: Encoders = "vision") -> Weights:
    """Return the weight matrices of some linear layers of every block, such as ``q_proj``; biases stay fixed.

    Args:
        model: An ``open_clip`` or ``timm`` model; its attention is unfolded in place.
        layers: Last parts of the layers' names, as :func:`clgym.attention.lora_targets` lists them.
        encoders: ``"all"``, ``"vision"`` or ``"text"``.

    Raises:
        NotRegisteredError: No block has such a layer.
        SettingError: ``encoders`` is unknown or not there.
    """
    found = lora_targets(unfold_attention(model), encoders)
    known = {name.rpartition(".")[2] for name in found}
    for layer in layers:
        if layer not in known:
            raise NotRegisteredError.among("layer", layer, known)
    return Weights(model, [f"{name}.weight" for name in found if name.rpartition(".")[2] in layers])


def grouped(**groups: Values) -> dict[str, Tensor]:
    """Return several groups of values as one, for a checkpoint.

    >>> grouped(weight={"a.b": torch.tensor(1)}, anchor={"a.b": torch.tensor(2)})
    {'weight.a.b': tensor(1), 'anchor.a.b': tensor(2)}
    """
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def regrouped(tensors: Values, device: torch.device) -> defaultdict[str, dict[str, Tensor]]:
    """Return copies of what :func:`grouped` put together, by group; a group that is not there is empty."""
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = value.to(device, copy=True)
    return groups
