"""CODA-Prompt: prompts that are sums of components, weighted by what each attends to in an image's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.prompting import PromptedViT

Parts = tuple[Tensor, Tensor, Tensor]


class CODAPrompt(Learner):
    """Continual decomposed attention-based prompting (arXiv:2211.13218).

    In each prompted block, the prompt of an image is ``p = sum_m cos(q(x) * A_m, K_m) P_m``: the frozen model's feature
    ``q(x)``, weighted number by number by the attention ``A_m`` of a component, is compared with its key ``K_m``. The
    first half of ``p`` are keys and the second half values before those of the tokens (prefix tuning). A task adds
    components, drawn orthogonal to all before them; those of earlier tasks are fixed and go on to take part. The loss
    is ``CE + ortho * sum_B mean((B B^T - I)^2)``, the sum over ``P``, ``K`` and ``A`` of each block.

    Args:
        setup: What is known of the stream.
        components: Components that a task adds to each prompted block; ``None`` is 10 on a real model, a hundred in
            ten tasks, and 5 on the tiny ones.
        length: Keys and values of a prompt, an even number; ``None`` is 8 on a real model and 4 on the tiny ones.
        blocks: Prompted blocks, from the first on; ``None`` is five twelfths, five of twelve.
        ortho: Weight of the penalty.
        lr: Peak learning rate of Adam; ``None`` is 1e-3 on a real model and on the tiny CLIP, 5e-3 on the tiny ViT.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="coda_prompt-v0",
        title="CODA-Prompt",
        paper="arXiv:2211.13218",
        code="github.com/GT-RIPL/CODA-Prompt@605ac87",
        family="architecture",
        departs=(
            "The number of tasks is not known, so that a task adds a fixed number of components; paper and code share "
            "a hundred among the tasks. New ones are orthogonal to all before them, as in the code; where these span "
            "all of the space, they are orthogonal to each other alone. The paper's weight of the penalty is 0.1, "
            "which its code multiplied by 1e-6 and later set to 0, when it came to draw components so; here it is the "
            "first two's product. Before the first task the model has no prompts. On CLIP, which the paper does not "
            "have, texts classify, and keys are as long as CLIP's features."
        ),
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        components: int | None = None,
        length: int | None = None,
        blocks: int | None = None,
        ortho: float = 1e-7,
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Start without components."""
        rate = learning_rate(lr, setup, real=1e-3, tiny=1e-3 if setup.reads_text else 5e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble)
        tiny = setup.backbone.startswith("embedded/")
        count = (5 if tiny else 10) if components is None else components
        size = (4 if tiny else 8) if length is None else length
        self.vit = PromptedViT(self.backbone)
        widest = min(self.backbone.embed_dim, size * self.vit.width)
        if not 1 <= count <= widest or size < 2 or size % 2 or ortho < 0:
            raise SettingError(
                f"Expected components from 1 to {widest}, an even length of 2 or more and ortho of 0 or more; got "
                f"{count}, {size} and {ortho}. The released code has 10 in each of ten tasks, 8 and 0."
            )
        self.ortho = ortho
        self.at = self.vit.first(blocks, 5 / 12)
        q, d = self.backbone.embed_dim, self.vit.width
        empty = [torch.empty(self.at.stop, 0, *shape, device=self.device) for shape in ((size, d), (q,), (q,))]
        self.fixed: Parts = (empty[0], empty[1], empty[2])  # prompts, keys and attention of earlier tasks
        self.fresh = [nn.Parameter(part.new_zeros(self.at.stop, count, *part.shape[2:])) for part in empty]
        self.tasks = 0

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Fix the components of the last task, and draw new ones orthogonal to all."""
        if self.tasks:
            prompts, keys, attention = self.parts()
            self.fixed = prompts.detach(), keys.detach(), attention.detach()
        self.tasks += 1
        with torch.no_grad():
            for part, old in zip(self.fresh, self.fixed, strict=True):
                for block, before in zip(part, old, strict=True):
                    block.copy_(orthogonal(len(block), before.flatten(1), self.generator).view_as(block))
        return self.fresh

    def parts(self) -> Parts:
        """Return prompts ``(blocks, M, P, d)``, keys and attention ``(blocks, M, embed_dim)`` of all tasks."""
        prompts, keys, attention = (torch.cat(pair, dim=1) for pair in zip(self.fixed, self.fresh, strict=True))
        return prompts, keys, attention

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes plus the penalty."""
        loss = super().loss(images, targets)
        return loss + self.ortho * sum(map(penalty, self.parts())) if self.ortho else loss

    def encode(self, images: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)`` of images, each with its own prompts."""
        if not self.tasks:
            return super().encode(images)
        prompts = assemble(self.vit.query(images), *self.parts())
        pairs = prompts.view(*prompts.shape[:2], 2, -1, prompts.shape[-1]).transpose(1, 2)
        with self.vit.prefixed([(self.at, pairs)]):
            return super().encode(images)

    def footprint(self) -> Footprint:
        """Count the task's components as trained, and those of all tasks as kept and used."""
        own = sum(part.numel() for part in self.fresh)
        return Footprint(own, self.tasks * own, self.tasks * own)

    def tensors(self) -> dict[str, Tensor]:
        """Return all components."""
        names = ("prompts", "keys", "attention")
        state = {f"fixed.{name}": part for name, part in zip(names, self.fixed, strict=True)}
        state |= {f"fresh.{name}": part.detach() for name, part in zip(names, self.fresh, strict=True)}
        return state | {"tasks": torch.tensor(self.tasks)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        prompts, keys, attention = (
            tensors[f"fixed.{name}"].to(self.device) for name in ("prompts", "keys", "attention")
        )
        self.fixed = prompts, keys, attention
        for name, part in zip(("prompts", "keys", "attention"), self.fresh, strict=True):
            part.copy_(tensors[f"fresh.{name}"])
        self.tasks = int(tensors["tasks"])


def assemble(query: Tensor, prompts: Tensor, keys: Tensor, attention: Tensor) -> Tensor:
    """Return the prompts of images, ``sum_m cos(q * A_m, K_m) P_m`` (arXiv:2211.13218).

    ``cos(q * A, K) = q . (A * K / |K|) / sqrt(q^2 . A^2)``, so that no ``(B, M, embed_dim)`` is formed.

    Args:
        query: ``(B, embed_dim)``.
        prompts: ``(blocks, M, P, d)``.
        keys: ``(blocks, M, embed_dim)``.
        attention: ``(blocks, M, embed_dim)``.

    Returns:
        ``(blocks, B, P, d)``.
    """
    query = query.float()
    along = query @ (attention * F.normalize(keys, dim=-1)).mT  # (blocks, B, M)
    lengths = (query.square() @ attention.square().mT).clamp_min(1e-24).sqrt()
    return torch.einsum("nbm,nmpd->nbpd", along / lengths, prompts)


def penalty(part: Tensor) -> Tensor:
    """Return ``mean((B B^T - I)^2)`` summed over blocks, for components ``(blocks, M, ...)``.

    >>> round(float(penalty(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))), 4)  # ((4 - 1)^2 + 0 + 0 + 0) / 4
    2.25
    """
    rows = part.flatten(2)
    unit = torch.eye(rows.shape[1], device=rows.device)
    return (rows @ rows.mT - unit).square().mean(dim=(1, 2)).sum()


def orthogonal(count: int, before: Tensor, generator: torch.Generator) -> Tensor:
    """Draw rows of length 1 that are orthogonal to each other and, while there is room, to all before them.

    Args:
        count: How many.
        before: ``(M, d)``.
        generator: Source of the draw.

    Returns:
        ``(count, d)``.
    """
    drawn = torch.randn(count, before.shape[1], generator=generator, dtype=torch.float64)
    if 0 < len(before) <= before.shape[1] - count:
        basis = torch.linalg.qr(before.detach().double().cpu().mT).Q  # (d, M)
        drawn = drawn - drawn @ basis @ basis.mT
    rows: Tensor = torch.linalg.qr(drawn.mT).Q.mT.to(before)
    return rows
