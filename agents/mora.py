"""MoRA: each task adds rank-1 experts that answer by themselves to the inputs they know; none is ever merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.contrast import text_to_image_weight, two_way_loss
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.lora import LoRALinear, LoRASet
from clgym.ops import expert_linear
from clgym.step_weights import same_inputs


class ExpertLinear(nn.Module):
    """A frozen linear layer beside a bank of frozen rank-1 experts and the fresh ones of a branch.

    ``y = W x + b + B (a * p)`` with ``p = A x`` and ``a`` of :func:`clgym.ops.rank_gate`: the value of an expert
    is multiplied by its raw response. ``A`` and ``B`` hold the experts of all tasks, oldest first; those of old
    tasks are one tensor each. In training mode ``delta`` is not applied.

    Args:
        fresh: The adapted layer; its branch holds the experts in training.
        topk: See :func:`clgym.ops.rank_gate`.
        temperature: See :func:`clgym.ops.rank_gate`.
        delta: See :func:`clgym.ops.rank_gate`.
    """

    keys: Tensor
    values: Tensor
    together: SideBySide | None = None

    def __init__(self, fresh: LoRALinear, topk: int, temperature: float, delta: float) -> None:
        """Start with an empty bank."""
        super().__init__()
        self.fresh = fresh
        self.topk, self.temperature, self.delta = topk, temperature, delta
        self.register_buffer("keys", fresh.A.detach().new_empty(0, fresh.A.shape[1]))  # (R - r, in)
        self.register_buffer("values", fresh.Bt.detach().new_empty(0, fresh.Bt.shape[1]))  # (R - r, out)
        self.eval()

    @property
    def weight(self) -> Tensor:
        """The frozen weight ``(out, in)``; models ask their layers for its dtype."""
        return self.fresh.weight

    @torch.no_grad()
    def freeze(self) -> None:
        """Append the fresh experts to the bank, as copies."""
        self.keys = torch.cat([self.keys, self.fresh.A])
        self.values = torch.cat([self.values, self.fresh.Bt])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        base, bank = self.fresh.base, (self.keys, self.values)
        return expert_linear(x, base.weight, base.bias, bank, self.fresh.A, self.fresh.Bt, **self.rule())

    def rule(self) -> dict[str, Any]:
        """Return how experts compete."""
        return {"topk": self.topk, "temperature": self.temperature, "delta": None if self.training else self.delta}


class SideBySide:
    """Layers of experts that read the same inputs, as an attention's q, k and v do: on CPU one call asks them all."""

    def __init__(self) -> None:
        """Start with nothing stacked."""
        self._banks: list[Tensor] = []
        self._frozen: tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]] | None = None

    def outputs(self, x: Tensor, *layers: ExpertLinear) -> Tensor | None:
        """Return what alike layers say of inputs ``(..., in)``: ``(..., len(layers) * out)``; on a GPU None."""
        if x.is_cuda:
            return None
        banks = [*(layer.keys for layer in layers), *(layer.values for layer in layers)]
        if self._frozen is None or list(map(id, banks)) != list(map(id, self._banks)):
            bases = [layer.fresh.base for layer in layers]
            biases: list[Tensor] = [base.bias for base in bases if base.bias is not None]
            with torch.inference_mode(False):
                weight, bias = torch.cat([base.weight for base in bases]), torch.cat(biases) if biases else None
                bank = torch.stack(banks[: len(layers)]), torch.stack(banks[len(layers) :])
            self._banks, self._frozen = banks, (weight, bias, bank)
        A, Bt = torch.stack([layer.fresh.A for layer in layers]), torch.stack([layer.fresh.Bt for layer in layers])
        return expert_linear(x, *self._frozen, A, Bt, **layers[0].rule())


def add_experts(lora: LoRASet, topk: int, temperature: float, delta: float) -> dict[str, ExpertLinear]:
    """Put an :class:`ExpertLinear` in the place of each adapted layer, and return them by name."""
    runs = same_inputs([layer for _, layer in lora.layers], lora.model)
    made = lora.replace(lambda layer: ExpertLinear(layer, topk, temperature, delta))
    for run in runs:
        together = SideBySide() if len(run) > 1 else None
        for layer in made.values():
            if layer.fresh in run:
                layer.together = together
    return made


class MoRA(Learner):
    """Mixture of self-activated rank-1 experts (MoRA, later MoRAM; arXiv:2506.21035).

    Each task adds ``r`` rank-1 experts to every adapted layer. An expert is a key ``A_i``, a value ``B_i``,
    and answers by ``p_i = A_i x``; the largest of the normalised responses decide who is active, see
    :class:`ExpertLinear`. There is no router and no task id; experts of old tasks are frozen, compete with the
    new ones in training too, and are never merged. At evaluation an expert of a score below ``delta`` is
    silent, and where all are, the answer is the frozen model's.

    Args:
        setup: What is known of the stream.
        r: Experts that a task adds to every layer.
        topk: Most experts active for one token; at least 2, and less than 2 is 2.
        temperature: Of the softmax over scores.
        delta: Least score of an active expert at evaluation; scores shrink as the bank grows.
        lr: Peak learning rate of AdamW; ``None`` is 5e-4 on a real model and 2e-3 on the tiny CLIP.
        text_to_image: Weight of the text-to-image term; ``None`` is 1 on a real model and 0.2 on the tiny CLIP.
        targets: Which encoders are adapted: ``"all"``, ``"vision"`` or ``"text"``.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="mora-v0",
        title="MoRA",
        paper="arXiv:2506.21035",
        code="github.com/Artificer-AI-Lab/MoRAM@aaa51d8",
        family="architecture",
        departs=(
            "Text rows of old classes are not encoded: the released loss masks or zeroes every term they stand in, and "
            "counts them in one average. Of equal scores the lower index is taken. On the tiny CLIP the learning rate "
            "is its own, and the text-to-image term has a fifth of its weight, which keeps its proportion to the first "
            "term: it grows with images per class of a batch."
        ),
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 16,
        topk: int = 16,
        temperature: float = 0.01,
        delta: float = 0.2,
        lr: float | None = None,
        text_to_image: float | None = None,
        targets: Encoders = "all",
        ensemble: bool = True,
    ) -> None:
        """Put fresh experts on the backbone; they change nothing yet."""
        super().__init__(
            setup, lr=learning_rate(lr, setup, real=5e-4, tiny=2e-3), betas=(0.9, 0.9999), ensemble=ensemble
        )
        if temperature <= 0 or topk < 1:
            raise SettingError(
                f"Expected temperature above 0 and topk of 1 or more; got {temperature} and {topk}. "
                "The paper has 0.01 and 16."
            )
        self.text_to_image = text_to_image_weight(text_to_image, setup)
        self.lora = self.adapt(r=r, targets=targets)
        self.experts = add_experts(self.lora, max(topk, 2), temperature, delta)
        self.tasks, self.old_classes = 0, 0

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Freeze what the last task trained, and draw fresh experts."""
        assert self.lora is not None
        if self.tasks:
            for layer in self.experts.values():
                layer.freeze()
            self.lora.reset(self.generator)
        self.tasks += 1
        return [self.lora.arena()]

    def learn(self, event: Train) -> None:
        """Take one step, without the threshold ``delta``."""
        self._train(True)
        super().learn(event)
        self._train(False)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return ``CE(image -> current text) + CE(text -> image)``, the second averaged over old and new rows."""
        logits = self.logits(images, self.training_rows(self._now().prompts))
        return two_way_loss(logits, targets, self.old_classes, self.text_to_image)

    def end(self) -> None:
        """Count the classes learned."""
        self.old_classes += len(self._now().classes)

    def footprint(self) -> Footprint:
        """Count the experts of the task at hand as trained, and those of all tasks as kept and used."""
        assert self.lora is not None
        kept = self.tasks * self.lora.trainable_count
        return Footprint(self.lora.trainable_count, kept, kept)

    def matrices(self) -> None:
        """Offer no weights: which experts act depends on the input."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the experts and the counts; the frozen weights never change."""
        assert self.lora is not None
        counts = {"tasks": torch.tensor(self.tasks), "old_classes": torch.tensor(self.old_classes)}
        bank = {f"{name}.keys": layer.keys for name, layer in self.experts.items()}
        bank |= {f"{name}.values": layer.values for name, layer in self.experts.items()}
        return self.lora.named_tensors() | bank | counts

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        assert self.lora is not None
        self.tasks, self.old_classes = int(tensors.pop("tasks")), int(tensors.pop("old_classes"))
        for name, layer in self.experts.items():
            layer.keys = tensors.pop(f"{name}.keys").to(self.device)
            layer.values = tensors.pop(f"{name}.values").to(self.device)
        self.lora.load_tensors(tensors)

    def _train(self, mode: bool) -> None:
        for layer in self.experts.values():
            layer.training = mode  # train() would visit every module below, which takes as long as a block
