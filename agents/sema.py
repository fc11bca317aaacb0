"""SEMA: a block gets another adapter only when a task's images look new to those it has; a router mixes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import vision_blocks
from clgym.errors import SettingError
from clgym.events import Array, TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.mixture import DESCRIPTOR, Units

COUNTERS = ("tasks", "scanning", "at", "left", "length", "deeper", "before", "seen")


class SEMA(Learner):
    """Self-expansion with modularised adaptation (SEMA, arXiv:2403.18886).

    Every block has a unit, see :class:`clgym.mixture.Units`, and the first task trains them all. Only the last blocks
    are expandable; those before are frozen from then on. Each later task begins with a scan of some batches, on which
    nothing is learned: in an expandable block, the descriptor of every unit scores an image by
    ``|error - mean| / deviation``, where mean and deviation are of the last errors that it saw in training. Where even
    the unit to which the images look least odd has a mean score above ``threshold``, the block needs a new unit. The
    shallowest such block gets it; once it is trained, deeper blocks are scanned with it in place. A task adds at most
    one unit to a block, and units of earlier tasks and their columns of the router never change. Where no block needs
    one, the task trains its rows of the head alone. That is why CLIP is refused: its classes are texts, so such a task
    would learn nothing.

    Args:
        setup: What is known of the stream.
        r: Bottleneck of an adapter.
        hidden: Bottleneck of a descriptor; 0 is a sixth of the width, the paper's 128 of 768.
        expandable: Number of expandable blocks, the last ones; 0 is a quarter of all, at least one.
        threshold: Mean score above which a block needs a unit, above 0; higher adds fewer. On images like those that a
            unit was trained on the mean score is below 1.
        records: Number of last errors whose mean and deviation are kept, above 2.
        scan: Share of a task's steps for one scan, in (0, 1).
        descriptor_rate: Learning rate of the descriptors as a share of the adapters', above 0.
        head_rate: Learning rate of the head as a share of the adapters', above 0.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 1e-3 on the tiny ones.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="sema-v0",
        title="SEMA (self-expanding mixture of adapters)",
        paper="arXiv:2403.18886",
        code="github.com/huiyiwang01/SEMA-CL@5a45512",
        family="architecture",
        departs=(
            "AdamW with a cosine and a faster head, where the code has SGD at one rate. A stream shows a task once, so "
            "descriptors are trained in the same steps as their adapters and not in epochs of their own, scans take "
            "steps of the task, and where a task may need several units each is trained in an equal share of the steps "
            "that are left. The score's absolute value is the code's; the paper prints none. Adapters have neither "
            "scale nor dropout, as in the code, where both are set and never applied. In the code old rows of the head "
            "decay; here they stay."
        ),
        needs_head=True,
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
        scan: float = 0.04,
        descriptor_rate: float = 2.0,
        head_rate: float = 10.0,
        lr: float | None = None,
    ) -> None:
        """Put one fresh unit beside every block; they say nothing yet."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=1e-3, tiny=1e-3))
        blocks = vision_blocks(self.backbone.model)
        if min(threshold, descriptor_rate, head_rate) <= 0 or not 0 < scan < 1:
            raise SettingError(
                "Expected threshold, descriptor_rate and head_rate above 0 and scan in (0, 1); got "
                f"{threshold}, {descriptor_rate}, {head_rate} and {scan}. Try 2, 2, 10 and 0.04."
            )
        if r < 1 or hidden < 0 or records < 3 or not 0 <= expandable <= len(blocks):
            raise SettingError(
                f"Expected r of 1 or more, hidden of 0 or more, 3 records or more and 0 to {len(blocks)} expandable "
                f"blocks; got {r}, {hidden}, {records} and {expandable}. The paper has 16, 128, 500 and 3."
            )
        self.threshold, self.keep, self.scan, self.descriptor_rate = threshold, records, scan, descriptor_rate
        self.head_share = head_rate
        width = blocks[0].attention.q_proj.in_features
        last = len(blocks) - (expandable or max(1, len(blocks) // 4))
        hides = [(hidden or max(1, width // 6)) if i >= last else 0 for i in range(len(blocks))]
        self.blocks = [Units(width, r, of_block, self.device) for of_block in hides]
        self.expandable = self.blocks[last:]
        for block, units in zip(blocks, self.blocks, strict=True):
            units.add(self.generator)
            units.attach(block)
        self.tasks = 0
        self.scanning = False
        self.at = self.left = self.length = 0  # steps of the task gone, of the phase to come, and of the phase
        self.deeper = 0  # the first expandable block that this task may still add a unit to
        self.before = 0  # scalars of all units before this task
        self.seen = 0  # images of this scan
        self.sums = [torch.zeros(0, device=self.device) for _ in self.expandable]  # of scores in this scan, (K,) each

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Train nothing: each phase says what it trains."""
        return ()

    def begin_task(self, event: TaskStart) -> None:
        """Begin with training in the first task, and with a scan in later ones."""
        super().begin_task(event)
        self.at = self.deeper = 0
        self.before = self._count() if self.tasks else 0
        self.tasks += 1
        if self.tasks == 1:
            self._train(event.steps)
        else:
            self._scan()

    def _scan(self) -> None:
        """Begin a scan, if there is a block to scan and steps are left to train a unit in."""
        rest, length = self._now().steps - self.at, max(1, int(self.scan * self._now().steps))
        if self.deeper == len(self.expandable) or length >= rest:
            self._train(rest)
            return
        self.scanning, self.left, self.length, self.seen, self.optimizer = True, length, length, 0, None
        self.sums = [torch.zeros(len(units), device=self.device) for units in self.expandable]

    def _train(self, length: int) -> None:
        """Begin to train the fresh units and the head."""
        self.scanning, self.left, self.length = False, length, length
        fresh = [pair for units in self.blocks for pair in units.fresh.items()]
        self.start_optimizer([p for name, p in fresh if name not in DESCRIPTOR], length)
        if describing := [p for name, p in fresh if name in DESCRIPTOR]:
            assert self.optimizer is not None
            self.optimizer.add_param_group({"params": describing, "share": self.descriptor_rate})

    def _turn(self) -> None:
        """End a phase, and begin the next."""
        if not self.scanning:
            self._scan()
            return
        rest = self._now().steps - self.at
        odd = [float(total.min()) / self.seen > self.threshold for total in self.sums]
        found = next((i for i in range(self.deeper, len(odd)) if odd[i]), None)
        if found is None:
            self.deeper = len(self.expandable)
            self._train(rest)
            return
        self.end()
        self.expandable[found].add(self.generator)
        self.deeper = found + 1
        self._train(max(1, rest // (len(self.expandable) - found)))

    def learn(self, event: Train) -> None:
        """Take one step of the phase at hand."""
        if not self.left:
            self._turn()
        self.at, self.left = self.at + 1, self.left - 1
        if self.scanning:
            self._look(event)
        elif self.optimizer is not None:
            super().learn(event)

    @torch.no_grad()
    def _look(self, event: Train) -> None:
        """Sum the scores of a batch, in the blocks that may get a unit."""
        with self.autocast:
            self.encode(self.to_device(event.inputs, None)[0])
        for i in range(self.deeper, len(self.sums)):
            self.sums[i] += self.expandable[i].scores().sum(dim=1)
        self.seen += len(event.inputs)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes, plus the errors of the descriptors in training."""
        loss = super().loss(images, targets)
        for units in self.expandable:
            if units.fresh:
                loss = loss + units.describe(self.keep)
        return loss

    def end(self) -> None:
        """Freeze the units that the task added."""
        for units in self.blocks:
            units.freeze()

    def _count(self) -> int:
        return sum(len(units) * units.size for units in self.blocks)

    def footprint(self) -> Footprint:
        """Count what this task added as trained, and all units as stored; descriptors are not needed at inference."""
        count, added = self._count(), sum(len(units) for units in self.expandable)
        at_inference = sum(len(units) * units.size_at_inference for units in self.blocks)
        return Footprint(count - self.before, stored=count + 2 * added, added_at_inference=at_inference)

    def matrices(self) -> Iterator[Array] | None:
        """Return none: the mixture depends on the input."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return all units, and how far the task is."""
        state = {f"unit.{i}.{name}": t for i, units in enumerate(self.blocks) for name, t in units.state()}
        state |= {f"sum.{i}": total for i, total in enumerate(self.sums)}
        return state | {"counters": torch.tensor([int(getattr(self, name)) for name in COUNTERS])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back, and go on with the phase at hand."""
        for i, units in enumerate(self.blocks):
            mine = f"unit.{i}."
            units.put({name.removeprefix(mine): t for name, t in tensors.items() if name.startswith(mine)})
        self.sums = [tensors[f"sum.{i}"].to(self.device, copy=True) for i in range(len(self.sums))]
        counters = dict(zip(COUNTERS, tensors["counters"].tolist(), strict=True))
        if not counters["scanning"]:
            self._train(counters["length"])
        for name, value in counters.items():
            setattr(self, name, bool(value) if name == "scanning" else value)
