"""SD-LoRA: directions of past updates stay, and how far the model goes along each of them is learned on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.lora import LoRALinear, LoRASet
from clgym.tuning import grouped, regrouped

VARIANTS = {"paper": 1.0, "released": 0.8}  # and the magnitude of a new direction
TINY = 1e-12


class Magnitudes:
    """How far all layers go along each direction, and how many ranks each direction has.

    Attributes:
        values: ``alpha``, ``(t,)``; the last is the newest direction's, if one is in training.
        ranks: Rank of each direction that is kept.
    """

    values: nn.Parameter
    ranks: list[int]

    def __init__(self, device: torch.device) -> None:
        """Start without directions."""
        self.values, self.ranks = nn.Parameter(torch.zeros(0, device=device)), []

    @property
    def training(self) -> bool:
        """Whether a direction is in training beside those that are kept."""
        return len(self.values) > len(self.ranks)

    def per_rank(self) -> Tensor:
        """Return the magnitude of the direction that each kept rank belongs to, ``(R,)``, with gradient."""
        ranks = torch.tensor(self.ranks, dtype=torch.int64, device=self.values.device)
        return self.values[: len(ranks)].repeat_interleave(ranks)


class DirectionLinear(nn.Module):
    """A frozen linear layer moved along kept directions and a new one.

    ``y = (W + sum_k alpha_k D_k + alpha_t B A / |B A|_F) x + b``, as one matrix. A kept ``D_k = B_k A_k`` has Frobenius
    norm 1; ``keys`` and ``values`` hold the factors of all of them, oldest first.

    Args:
        fresh: The adapted layer; its branch is the new direction, and nothing while it is zero.
        magnitudes: Shared by all layers.
        variant: See :class:`SDLoRA`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, fresh: LoRALinear, magnitudes: Magnitudes, variant: str) -> None:
        """Start without kept directions."""
        super().__init__()
        self.fresh, self.magnitudes, self.released = fresh, magnitudes, variant == "released"
        self.register_buffer("keys", fresh.A.detach().new_empty(0, fresh.A.shape[1]))  # (R, in)
        self.register_buffer("values", fresh.Bt.detach().new_empty(0, fresh.Bt.shape[1]))  # (R, out)

    @property
    def weight(self) -> Tensor:
        """The frozen weight ``(out, in)``; models ask their layers for its dtype."""
        return self.fresh.weight

    def effective(self) -> Tensor:
        """Return the weight with all directions, ``(out, in)``."""
        A, Bt = self.fresh.A, self.fresh.Bt
        # The factors are far smaller than the inputs, so it is cheaper to add them up than to apply each.
        moved = self.weight + (self.magnitudes.per_rank()[:, None] * self.values).T @ self.keys
        if not self.magnitudes.training:
            return moved
        norm = 1.0 if self.released else product_norm(A, Bt).clamp_min(TINY)
        return moved + (self.magnitudes.values[-1] / norm) * (Bt.T @ A)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        return F.linear(x, self.effective(), self.fresh.base.bias)

    @torch.no_grad()
    def keep(self, rank: int) -> None:
        """Append the first ranks of the branch to the kept directions, normalised."""
        A, Bt = self.fresh.A[:rank], self.fresh.Bt[:rank]
        norm = A.norm() * Bt.norm() if self.released else product_norm(A, Bt)
        self.keys = torch.cat([self.keys, A])
        self.values = torch.cat([self.values, Bt / norm.clamp_min(TINY)])

    def drop(self, rank: int) -> None:
        """Forget the last kept ranks."""
        self.keys, self.values = self.keys[:-rank], self.values[:-rank]


def product_norm(A: Tensor, Bt: Tensor) -> Tensor:
    """Return the Frobenius norm of ``B A`` from its factors ``(r, in)`` and ``(r, out)``.

    >>> float(product_norm(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])))
    12.0
    """
    return ((A @ A.T) * (Bt @ Bt.T)).sum().clamp_min(TINY**2).sqrt()


def add_directions(lora: LoRASet, magnitudes: Magnitudes, variant: str) -> dict[str, DirectionLinear]:
    """Put a :class:`DirectionLinear` in the place of each adapted layer, and return them by name."""
    return lora.replace(lambda layer: DirectionLinear(layer, magnitudes, variant))


class SDLoRA(Learner):
    """Scalable decoupled low-rank adaptation (SD-LoRA, arXiv:2501.13198).

    ``W + sum_k alpha_k D_k`` on the query and value projections, with ``D_k = B_k A_k / |B_k A_k|_F`` (eq. 4). A task
    learns a direction ``D_t`` of its own; those of earlier tasks stay as they are, while the magnitudes ``alpha`` of
    all of them are learned on, one for all layers. Inference uses one matrix and no task id.

    Args:
        setup: What is known of the stream.
        r: Rank of a direction.
        reduce: Pairs of a task, from 1, and the rank from it on; ``((4, 8), (8, 6))`` is SD-LoRA-RR.
        absorb: Residual up to which a new direction is written as a sum of the kept ones and not kept, as a share of
            its norm (SD-LoRA-KD, eq. 7); 0 keeps every direction.
        variant: ``"paper"``: as above, a new direction starts at random with magnitude 1; or ``"released"``: as in the
            code, a new direction is not normalised until the next task, then by ``|A|_F |B|_F``, and at each task all
            magnitudes start anew from 0.8.
        layers: Which linear layers of every block are adapted.
        targets: Which encoders are adapted: ``"vision"``, ``"text"`` or ``"all"``.
        lr: Peak learning rate of AdamW; ``None`` is 8e-3 on a real model, 2e-3 on the tiny ViT and 5e-4 on the
            tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="sd_lora-v0",
        title="SD-LoRA",
        paper="arXiv:2501.13198",
        code="github.com/zyx303/SD-Lora-CL@3e81bc2 (a copy)",
        family="optimisation",
        departs=(
            "The equations are the paper's; the released code's are variant='released'. How a new direction starts is "
            "not stated; both factors are drawn as LoRA draws A. What absorb takes from a direction is multiplied by "
            "its magnitude, which eq. 8 leaves out, and its residual is relative. On CLIP the image encoder "
            "alone is adapted."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 10,
        reduce: tuple[tuple[int, int], ...] = (),
        absorb: float = 0.0,
        variant: str = "paper",
        layers: tuple[str, ...] = ("q_proj", "v_proj"),
        targets: Encoders = "vision",
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Put the layers in place; they change nothing yet."""
        rate = learning_rate(lr, setup, real=8e-3, tiny=5e-4 if setup.reads_text else 2e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble)
        if any(task < 1 or not 1 <= rank <= r for task, rank in reduce) or not 0 <= absorb <= 1:
            raise SettingError(
                f"Expected reduce to be pairs of a task from 1 and a rank from 1 to r, and absorb in [0, 1]; got "
                f"{reduce} with r={r}, and {absorb}. The paper has ((4, 8), (8, 6)) with r=10."
            )
        if variant not in VARIANTS:
            raise SettingError(
                f"Expected variant to be one of {tuple(VARIANTS)}; got {variant!r}. Choose one of these."
            )
        self.r, self.reduce, self.absorb, self.variant = r, tuple(reduce), absorb, variant
        self.lora = self.adapt(r=r, targets=targets, layers=layers)
        self.magnitudes = Magnitudes(self.device)
        self.directions = add_directions(self.lora, self.magnitudes, variant)
        self.learned, self.rank = 0, r

    @torch.no_grad()
    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Draw a new direction; all magnitudes are trained with it."""
        assert self.lora is not None
        self.keep()
        due = [rank for task, rank in sorted(self.reduce) if task <= self.learned + 1]
        self.rank = due[-1] if due else self.r
        self.lora.reset(self.generator)
        for _, layer in self.lora.layers:
            if self.variant == "paper":
                drawn = torch.empty(layer.Bt.shape, device=self.generator.device)
                layer.Bt.copy_(nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=self.generator))
            # A rank whose factors are both zero gets no gradient.
            layer.A[self.rank :], layer.Bt[self.rank :] = 0.0, 0.0
        old = self.magnitudes.values.detach()
        if self.variant == "released":
            old = torch.full_like(old, VARIANTS[self.variant])
        self.magnitudes.values = nn.Parameter(F.pad(old, (0, 1), value=VARIANTS[self.variant]))
        return [self.lora.arena(), self.magnitudes.values]

    @torch.no_grad()
    def keep(self) -> None:
        """Put the direction in training to the kept ones, or write it as a sum of them."""
        if not self.magnitudes.training:
            return
        for layer in self.directions.values():
            layer.keep(self.rank)
        self.magnitudes.ranks.append(self.rank)
        if not self.absorb or len(self.magnitudes.ranks) < 2:
            return
        shares, residual = self.fit()
        if residual <= self.absorb:
            for layer in self.directions.values():
                layer.drop(self.rank)
            self.magnitudes.ranks.pop()
            values = self.magnitudes.values
            self.magnitudes.values = nn.Parameter(values[:-1] + values[-1] * shares.to(values))

    def fit(self) -> tuple[Tensor, float]:
        """Return the sum of the other directions that is nearest the last, fp64 ``(t - 1,)``, and its distance.

        All layers count together, and the distance is a share of the direction's norm, in [0, 1] (eq. 7).
        """
        ranks = torch.tensor(self.magnitudes.ranks)
        of = F.one_hot(torch.arange(len(ranks)).repeat_interleave(ranks)).double()  # (R, t)
        gram = torch.zeros(len(ranks), len(ranks), dtype=torch.float64)
        for layer in self.directions.values():
            keys, values = layer.keys.double().cpu(), layer.values.double().cpu()
            gram += of.T @ ((keys @ keys.T) * (values @ values.T)) @ of
        shares = torch.linalg.pinv(gram[:-1, :-1], hermitian=True) @ gram[:-1, -1]
        left = gram[-1, -1] - shares @ gram[:-1, -1]
        return shares, float((left / gram[-1, -1].clamp_min(TINY)).clamp(0, 1).sqrt())

    def end(self) -> None:
        """Keep the direction; the released variant does so when the next task begins."""
        if self.variant == "paper":
            self.keep()
        self.learned += 1

    def footprint(self) -> Footprint:
        """Count a direction and all magnitudes as trained, and all directions as stored; one matrix is used."""
        assert self.lora is not None
        width = sum(layer.A.shape[1] + layer.Bt.shape[1] for _, layer in self.lora.layers)
        ranks = [*self.magnitudes.ranks, *([self.rank] if self.magnitudes.training else [])]
        newest = ranks[-1] if ranks else 0
        return Footprint(newest * width + len(ranks), stored=sum(ranks) * width + len(ranks))

    def tensors(self) -> dict[str, Tensor]:
        """Return the directions, the newest one's factors, and the magnitudes; the frozen weights never change."""
        assert self.lora is not None
        keys = {name: layer.keys for name, layer in self.directions.items()}
        values = {name: layer.values for name, layer in self.directions.items()}
        ranks, numbers = torch.tensor(self.magnitudes.ranks).long(), torch.tensor([self.learned, self.rank])
        both = {"ranks": ranks, "numbers": numbers, "magnitudes": self.magnitudes.values.detach()}
        return grouped(lora=self.lora.named_tensors(), key=keys, value=values, all=both)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        assert self.lora is not None
        groups = regrouped(tensors, self.device)
        self.lora.load_tensors(groups["lora"])
        for name, layer in self.directions.items():
            layer.keys, layer.values = groups["key"][name], groups["value"][name]
        self.magnitudes.ranks = groups["all"]["ranks"].tolist()
        self.learned, self.rank = groups["all"]["numbers"].tolist()
        self.magnitudes.values.data = groups["all"]["magnitudes"]
