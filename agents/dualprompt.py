"""DualPrompt: general prompts that all tasks share, and expert prompts of which each task trains its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.learner import Learner, learning_rate
from clgym.prompting import PromptedViT, cosines


class DualPrompt(Learner):
    """Complementary prompting (arXiv:2204.04799).

    Keys and values before those of the tokens (prefix tuning): the general prompt ``g`` in the first blocks, trained in
    all tasks, and an expert prompt ``e_t`` in the next ones, trained in task ``t`` and fixed from then on. The loss is
    ``CE - pull * cos(q(x), k_t)`` with the frozen model's feature ``q(x)`` and the task's key ``k_t``. A question
    takes the expert prompt whose key is nearest. An expert prompt starts from the one before.

    Args:
        setup: What is known of the stream.
        general_length: Keys, and as many values, of a general prompt in a block; ``None`` is 5 on a real model and 1
            on the tiny ones, which have 17 tokens.
        expert_length: The same of an expert prompt; ``None`` is 20 on a real model and 4 on the tiny ones.
        general_blocks: Blocks with general prompts; ``None`` is a sixth of all, two of twelve.
        expert_blocks: Blocks with expert prompts, behind the general ones; ``None`` is a quarter, three of twelve.
        pull: Weight of the cosine.
        lr: Learning rate of Adam, constant; ``None`` is 2.5e-3 on a real model and 5e-3 on the tiny ViT and 1e-3 on
            the tiny CLIP.
        clip: Largest norm of the gradient.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="dualprompt-v0",
        title="DualPrompt",
        paper="arXiv:2204.04799",
        code="github.com/google-research/l2p@3e102b0",
        family="architecture",
        departs=(
            "Expert prompts are added task by task; the code reserves ten. Each image chooses its expert prompt, as "
            "in the code for ImageNet-R; that for CIFAR-100 lets a batch vote on it. Lengths are those for ImageNet-R, "
            "and so is the learning rate, 0.005 per 256 images, here as for a batch of 128. Before the first task the "
            "model has no prompts. On CLIP, which the paper does not have, texts classify, and keys are as long as "
            "CLIP's features."
        ),
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        general_length: int | None = None,
        expert_length: int | None = None,
        general_blocks: int | None = None,
        expert_blocks: int | None = None,
        pull: float = 1.0,
        lr: float | None = None,
        clip: float = 1.0,
        ensemble: bool = True,
    ) -> None:
        """Draw the general prompt and the first expert prompt."""
        rate = learning_rate(lr, setup, real=2.5e-3, tiny=1e-3 if setup.reads_text else 5e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble)
        lengths = (1, 4) if setup.backbone.startswith("embedded/") else (5, 20)
        first = lengths[0] if general_length is None else general_length
        second = lengths[1] if expert_length is None else expert_length
        if min(first, second) < 1 or pull < 0 or clip <= 0:
            raise SettingError(
                f"Expected lengths of 1 or more, pull of 0 or more and clip above 0; got {first} and {second}, {pull} "
                f"and {clip}. The released code has 5 and 20, 1 and 1."
            )
        self.pull, self.clip_norm = pull, clip
        self.vit = PromptedViT(self.backbone)
        self.general_at = self.vit.first(general_blocks, 1 / 6)
        self.expert_at = self.vit.first(expert_blocks, 1 / 4, after=self.general_at.stop)
        self.general = self._draw(self.general_at.stop, 2, first, self.vit.width)
        self.expert = self._draw(self.expert_at.stop - self.expert_at.start, 2, second, self.vit.width)
        self.key = self._draw(self.backbone.embed_dim)
        self.experts = self.expert.detach().new_empty(0, *self.expert.shape)  # of earlier tasks
        self.keys = self.key.detach().new_empty(0, *self.key.shape)
        self.tasks = 0

    def _draw(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(0.01 * torch.rand(*shape, generator=self.generator).to(self.device))

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Fix what the last task learned; the task's expert prompt starts from it, with a key of its own."""
        if self.tasks:
            self.experts = torch.cat([self.experts, self.expert.detach()[None]])
            self.keys = torch.cat([self.keys, self.key.detach()[None]])
            self.key = self._draw(len(self.key))
        self.tasks += 1
        return [self.general, self.expert, self.key]

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes less the pull of the task's key."""
        features = self.prompted(images, self.expert[None].expand(len(images), -1, -1, -1, -1))
        logits = self.classify(features, self.training_rows(self._now().prompts))
        pulled = cosines(self.vit.query(images), self.key[None]).mean()
        return F.cross_entropy(logits, targets) - self.pull * pulled

    def encode(self, images: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)`` of images, each with the expert prompt whose key is nearest."""
        if not self.tasks:
            return super().encode(images)
        experts, keys = torch.cat([self.experts, self.expert[None]]), torch.cat([self.keys, self.key[None]])
        chosen = cosines(self.vit.query(images), keys).argmax(dim=1)
        return self.prompted(images, experts[chosen])

    def prompted(self, images: Tensor, experts: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)`` of images with expert prompts ``(B, blocks, 2, P, d)``, one an image."""
        general = self.general[:, :, None].expand(-1, -1, len(images), -1, -1)
        with self.vit.prefixed([(self.general_at, general), (self.expert_at, experts.movedim(0, 2))]):
            return self.backbone.encode_images(images)

    def schedule(self, step: int) -> float:
        """Return 1: the learning rate is constant."""
        return 1.0

    def after_backward(self) -> None:
        """Clip the gradient."""
        assert self.optimizer is not None
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip_norm)

    def footprint(self) -> Footprint:
        """Count general prompt, expert prompt and key as trained, and those of all tasks as kept and used."""
        own = self.expert.numel() + self.key.numel()
        kept = self.general.numel() + self.tasks * own
        return Footprint(self.general.numel() + own, kept, kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return prompts and keys."""
        parts = {"general": self.general, "expert": self.expert, "key": self.key}
        fixed = {"experts": self.experts, "keys": self.keys, "tasks": torch.tensor(self.tasks)}
        return {name: p.detach() for name, p in parts.items()} | fixed

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        for name in ("general", "expert", "key"):
            getattr(self, name).copy_(tensors[name])
        self.experts, self.keys = (tensors[name].to(self.device) for name in ("experts", "keys"))
        self.tasks = int(tensors["tasks"])
