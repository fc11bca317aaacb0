"""SEMA: a block gets another adapter only when a task's images look new to those it has; a router mixes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Block, vision_blocks
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate

SCAN, TRAIN, DESCRIBE = range(3)  # phases of a task


class Units(nn.Module):
    """The units of one block: those of earlier tasks, frozen and stacked, and at most one in training.

    A unit has an adapter ``f(x) = W_up relu(W_down x + b) + b'``, which reads the stream after attention, before the
    norm. Where units may be added it also has a column of the router and a representation descriptor ``g``, a linear
    auto-encoder; both read ``m``, the mean of ``x`` over the tokens. The block computes

    ``mlp(norm2(x)) + sum_k softmax(W m + c)_k f_k(x)``.

    Args:
        width: Length of a token, ``d``.
        r: Bottleneck of an adapter.
        hidden: Bottleneck of a descriptor; 0 is for a block with one unit for good, without router and descriptor.
        device: Where the units are.

    Attributes:
        frozen: Name to parameters of all frozen units, ``(K, ...)``; ``mean`` and ``deviation`` of their descriptors'
            errors are ``(K,)``.
        fresh: Name to parameters of the unit in training, ``(1, ...)``; empty if there is none.
        records: Last reconstruction errors of the unit in training, ``(n,)``.
    """

    def __init__(self, width: int, r: int, hidden: int, device: torch.device) -> None:
        """Start without units."""
        super().__init__()
        self.hidden, self.device = hidden, device
        self.shapes: dict[str, tuple[int, ...]] = {"down": (r, width), "down_bias": (r,)}
        self.shapes |= {"up": (r, width), "up_bias": (width,)}
        if hidden:
            self.shapes |= {"router": (width,), "router_bias": (), "encode": (hidden, width)}
            self.shapes |= {"encode_bias": (hidden,), "decode": (hidden, width), "decode_bias": (width,)}
        names = [*self.shapes, "mean", "deviation"] if hidden else self.shapes
        self.frozen = {name: torch.empty(0, *self.shapes.get(name, ()), device=device) for name in names}
        self.fresh = nn.ParameterDict()
        self.records = torch.empty(0, device=device)
        self._stream: Tensor | None = None
        self._pooled: Tensor | None = None

    def __len__(self) -> int:
        """Count the units."""
        return len(self.frozen["down"]) + bool(self.fresh)

    @property
    def size(self) -> int:
        """Number of scalars of one unit."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def size_of_descriptor(self) -> int:
        """Number of scalars of one unit that inference does not need."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(("encode", "decode")))

    def attach(self, block: Block) -> None:
        """Stand beside the feed-forward part of a block from now on."""
        block.norm.register_forward_pre_hook(self._look)
        block.mlp.register_forward_hook(self._add)

    def _look(self, norm: nn.Module, args: tuple[Tensor]) -> None:
        self._stream = args[0]

    def _add(self, mlp: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        assert self._stream is not None
        x, self._stream = self._stream, None
        return out + self(x)

    def add(self, generator: torch.Generator) -> None:
        """Put a new unit in training that says nothing yet: ``W_up`` and all biases are 0, the rest is drawn."""
        for name, shape in self.shapes.items():
            drawn = torch.zeros(1, *shape, device=generator.device)
            if name != "up" and not name.endswith("_bias"):
                # Uniform within 1 / sqrt(inputs), as nn.Linear draws; a decoder stands transposed.
                bound = (shape[0] if name == "decode" else shape[-1]) ** -0.5
                drawn.uniform_(-bound, bound, generator=generator)
            self.fresh[name] = nn.Parameter(drawn.to(self.device))
        self.records = self.records[:0]

    @torch.no_grad()
    def freeze(self) -> None:
        """Put the unit in training, if there is one, among the frozen, with the statistics of its records."""
        if not self.fresh:
            return
        new: dict[str, Tensor] = {name: p.detach() for name, p in self.fresh.items()}
        if self.hidden:
            # Of two records or fewer nothing can be said: an infinite deviation makes every score 0.
            known = len(self.records) > 2
            new["mean"] = self.records.mean(0, keepdim=True) if known else self.records.new_zeros(1)
            new["deviation"] = self.records.std(0, keepdim=True) if known else self.records.new_full((1,), torch.inf)
        self.frozen = {name: torch.cat([old, new[name]]) for name, old in self.frozen.items()}
        self.fresh = nn.ParameterDict()

    def _every(self, name: str) -> Tensor:
        """Return a parameter of all units, ``(K, ...)``."""
        return torch.cat([self.frozen[name], self.fresh[name]]) if self.fresh else self.frozen[name]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the units add to the feed-forward part, ``(B, L, d)``, given the stream ``(B, L, d)``."""
        down, up, bias = self._every("down"), self._every("up"), self._every("up_bias")  # (K, r, d), (K, d)
        h = F.linear(x, down.flatten(0, 1), self._every("down_bias").flatten()).relu()  # (B, L, K r)
        if not self.hidden:
            return h @ up[0] + bias[0]
        self._pooled = x.detach().float().mean(1)
        share = F.linear(x.mean(1), self._every("router"), self._every("router_bias")).softmax(-1)  # (B, K)
        h = h * share.repeat_interleave(down.shape[1], dim=1)[:, None]
        return h @ up.flatten(0, 1) + (share @ bias)[:, None]

    def errors(self, units: Mapping[str, Tensor]) -> Tensor:
        """Return the reconstruction errors ``(K, B)`` of the batch just seen: mean squares over ``d``, in fp32.

        Args:
            units: :attr:`fresh` or :attr:`frozen`.
        """
        assert self._pooled is not None
        with torch.autocast(self.device.type, enabled=False):
            m = self._pooled.expand(len(units["encode"]), -1, -1)  # (K, B, d)
            code = torch.baddbmm(units["encode_bias"][:, None], m, units["encode"].mT)  # (K, B, hidden)
            back = torch.baddbmm(units["decode_bias"][:, None], code, units["decode"])
            return (back - m).square().mean(-1)

    def scores(self) -> Tensor:
        """Return how odd the batch just seen is to each frozen unit: the z-score's absolute value, ``(K, B)``."""
        mean, deviation = self.frozen["mean"][:, None], self.frozen["deviation"][:, None]
        return ((self.errors(self.frozen) - mean) / deviation).abs()

    def describe(self, keep: int) -> Tensor:
        """Return the mean error of the unit in training on the batch just seen, and keep the last errors.

        Args:
            keep: Most records kept.
        """
        errors = self.errors(self.fresh)
        self.records = torch.cat([self.records, errors.detach()[0]])[-keep:]
        return errors.mean()


class SEMA(Learner):
    """Self-expansion with modularised adaptation (arXiv:2403.18886).

    The first task trains one unit in every block, see :class:`Units`. Only the last blocks are expandable; those
    before are frozen from then on. Each later task begins with a scan: in an expandable block, every unit's
    descriptor scores the images by ``|error - mean| / deviation``, where mean and deviation are of the last errors
    that it saw in training. Where even the unit to which they look least odd has a mean score above ``threshold``,
    the block needs a new unit. The shallowest such block gets it; once it is trained, deeper blocks are scanned with
    it in place. A task adds at most one unit to a block; units of earlier tasks and their columns of the router never
    change. Where no block needs one, the task trains its rows of the head alone, and on CLIP nothing.

    Args:
        setup: What is known of the stream.
        r: Bottleneck of an adapter.
        hidden: Bottleneck of a descriptor; 0 is a sixth of the width, the paper's 128 of 768.
        expandable: Number of expandable blocks, the last ones; 0 is a quarter of all, at least one.
        threshold: Mean score above which a block needs a unit; higher adds fewer. In-distribution it is below 1.
        records: Number of last errors whose mean and deviation are kept.
        detect_share: Share of a task's steps for one scan, in (0, 1).
        descriptor_share: Share of the first task's steps in which descriptors alone are trained, in [0, 1).
        descriptor_weight: Weight of the descriptors' loss beside the cross-entropy, above 0.
        lr: Peak learning rate.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="sema-v0",
        title="SEMA",
        paper="arXiv:2403.18886",
        code="github.com/huiyiwang01/SEMA-CL@5a45512",
        family="architecture",
        departs="",
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 16,
        hidden: int = 0,
        expandable: int = 0,
        threshold: float = 2.0,
        records: int = 500,
        detect_share: float = 0.05,
        descriptor_share: float = 0.3,
        descriptor_weight: float = 2.0,
        lr: float | None = None,
        opt: str = "sgd",
        ensemble: bool = True,
    ) -> None:
        """Put one fresh unit beside every block; they say nothing yet."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=5e-3, tiny=5e-3), ensemble=ensemble)
        self.opt = opt
        blocks = vision_blocks(self.backbone.model)
        self.threshold, self.records = threshold, records
        self.detect_share, self.descriptor_share = detect_share, descriptor_share
        self.descriptor_weight = descriptor_weight
        width = blocks[0].attention.q_proj.in_features
        self.first = len(blocks) - (expandable or max(1, len(blocks) // 4))  # of the expandable blocks
        self.blocks = [Units(width, r, (hidden or width // 6) * (i >= self.first), self.device) for i in range(len(blocks))]
        for block, units in zip(blocks, self.blocks, strict=True):
            units.add(self.generator)
            units.attach(block)
        self.tasks = self.at = self.left = self.length = self.deeper = 0
        self.phase = TRAIN
        self.known = 0
        self.sums: list[Tensor] = []
        self.scanned = 0

    @property
    def expandable(self) -> list[Units]:
        """The units of the expandable blocks, from shallow to deep."""
        return self.blocks[self.first :]

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Train nothing: phases say what is trained."""
        return ()

    def begin_task(self, event: TaskStart) -> None:
        """Open the first phase: a scan, or in the first task training."""
        super().begin_task(event)
        self.at, self.deeper = 0, 0
        self.known = 0 if self.tasks == 0 else self.count()
        self.tasks += 1
        if self.tasks == 1:
            self.open(TRAIN, event.steps - int(self.descriptor_share * event.steps))
        else:
            self.scan()

    def count(self) -> int:
        return sum(len(units) * units.size for units in self.blocks)

    def scan(self) -> None:
        steps = self._now().steps
        length = max(1, int(self.detect_share * steps))
        if self.deeper < len(self.expandable) and self.at + length < steps:
            self.sums = [torch.zeros(len(units), device=self.device) for units in self.expandable]
            self.scanned = 0
            self.open(SCAN, length)
        else:
            self.open(TRAIN, steps - self.at)

    def open(self, phase: int, length: int) -> None:
        self.phase, self.left, self.length = phase, length, length
        if phase == SCAN:
            self.optimizer = None
        else:
            self.start_optimizer(self.trained(), length)

    def trained(self) -> list[nn.Parameter]:
        return [
            p
            for units in self.blocks
            for name, p in units.fresh.items()
            if self.phase == TRAIN or name.startswith(("encode", "decode"))
        ]

    def turn(self) -> None:
        """Open the next phase."""
        rest = self._now().steps - self.at
        if self.phase == SCAN:
            scores = [float(s.min()) / self.scanned for s in self.sums]
            print("scores", self.task.name, self.task.task, [round(s, 2) for s in scores], self.deeper)
            found = [i for i, s in enumerate(scores) if i >= self.deeper and s > self.threshold]
            if not found:
                self.deeper = len(self.expandable)
                self.open(TRAIN, rest)
                return
            for units in self.blocks:
                units.freeze()
            self.expandable[found[0]].add(self.generator)
            self.deeper = found[0] + 1
            self.open(TRAIN, max(1, rest // (len(self.expandable) - found[0])))
        elif self.tasks == 1:
            self.open(DESCRIBE, rest)
        else:
            self.scan()

    def start_optimizer(self, parameters, steps):
        super().start_optimizer(parameters, steps)
        if self.opt == "sgd" and self.optimizer is not None:
            groups = [{"params": g["params"], "share": g["share"]} for g in self.optimizer.param_groups]
            self.optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)

    def learn(self, event: Train) -> None:
        """Take one step of the phase at hand."""
        if not self.left:
            self.turn()
        self.at, self.left = self.at + 1, self.left - 1
        if self.phase == SCAN:
            with torch.no_grad(), self.autocast:
                self.backbone.encode_images(self.to_device(event.inputs, None)[0])
                for total, units in zip(self.sums, self.expandable, strict=True):
                    total += units.scores().sum(1)
            self.scanned += len(event.inputs)
        elif self.optimizer is not None:
            super().learn(event)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        if self.phase == DESCRIBE:
            with torch.no_grad():
                self.backbone.encode_images(images)
            loss = torch.zeros((), device=self.device)
        else:
            loss = super().loss(images, targets)
        for units in self.expandable:
            if units.fresh:
                mse = units.describe(self.records)
                if self.step == self.steps - 1: print("mse", float(mse.detach()), float(units._pooled.var(0).mean()), "loss", float(loss.detach()))
                loss = loss + self.descriptor_weight * mse
        return loss

    def end(self) -> None:
        for units in self.blocks:
            units.freeze()

    def footprint(self) -> Footprint:
        count = self.count()
        at_inference = count - sum(len(units) * units.size_of_descriptor for units in self.blocks)
        return Footprint(count - self.known, count + 2 * sum(map(len, self.expandable)), at_inference)
