"""L2P: a pool of prompts, of which each image takes those whose keys are nearest to its frozen features."""

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


class L2P(Learner):
    """Learning to prompt (arXiv:2112.08654).

    The frozen model's feature ``q(x)`` of an image is compared with the keys ``k_i`` of a pool by cosine. The prompts
    of the ``top_k`` nearest keys are tokens of their own beside the image's, from the first block on, and the mean of
    what they become is classified. All of the pool learns in all tasks, by
    ``CE - pull * sum_i cos(q(x), k_i)`` over the chosen keys, of the mean over the batch.

    Args:
        setup: What is known of the stream.
        pool: Prompts in the pool.
        length: Tokens of a prompt; ``None`` is 10 on a real model and 2 on the tiny ones, which have 17 tokens.
        top_k: Prompts that an image takes.
        pull: Weight of the cosines.
        read: What is classified: ``"prompts"``, as in the paper; or ``"class"``, the class token. ``None`` is
            ``"class"`` on CLIP, whose features must stay near the texts, and else ``"prompts"``.
        shared: Whether in training a whole batch takes the prompts that are nearest most often in it, as in the
            released code. An answer never depends on the other images.
        lr: Learning rate of Adam, constant; ``None`` is 0.015 on a real model and 5e-3 on the tiny ones.
        clip: Largest norm of the gradient.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="l2p-v0",
        title="L2P",
        paper="arXiv:2112.08654",
        code="github.com/google-research/l2p@3e102b0",
        family="architecture",
        departs=(
            "Each image takes its own prompts. The released configuration lets a batch vote on them, in evaluation "
            "too, where a batch is of one task; shared=True votes in training alone. Sizes are those of the code for "
            "CIFAR-100; its learning rate is 0.03 per 256 images, here as for its batch of 128. Prompts follow the "
            "image's tokens instead of going before them, which changes nothing: they have no position. Before the "
            "first task the model has no prompts. On CLIP, which the paper does not have, texts classify the class "
            "token, and keys are as long as CLIP's features."
        ),
        mergeable=False,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        pool: int = 10,
        length: int | None = None,
        top_k: int = 4,
        pull: float = 1.0,
        read: str | None = None,
        shared: bool = False,
        lr: float | None = None,
        clip: float = 1.0,
        ensemble: bool = True,
    ) -> None:
        """Draw the pool."""
        super().__init__(setup, lr=learning_rate(lr, setup, real=0.015, tiny=5e-3), ensemble=ensemble)
        if length is None:
            length = 2 if setup.backbone.startswith("embedded/") else 10
        if not 1 <= top_k <= pool or length < 1 or pull < 0 or clip <= 0:
            raise SettingError(
                f"Expected top_k from 1 to pool, length of 1 or more, pull of 0 or more and clip above 0; got "
                f"{top_k} of {pool}, {length}, {pull} and {clip}. The released code has 4 of 10, 10, 1 and 1."
            )
        if read not in (None, "prompts", "class"):
            raise SettingError(f"Expected read 'prompts' or 'class'; got {read!r}. Choose one of these.")
        self.top_k, self.pull, self.shared, self.clip_norm = top_k, pull, shared, clip
        self.read_prompts = (read or ("class" if setup.reads_text else "prompts")) == "prompts"
        self.vit = PromptedViT(self.backbone)
        drawn = torch.rand(pool * (length * self.vit.width + self.backbone.embed_dim), generator=self.generator)
        prompts, keys = torch.split(
            0.01 * drawn.to(self.device), [pool * length * self.vit.width, pool * self.backbone.embed_dim]
        )
        self.prompts = nn.Parameter(prompts.view(pool, length, -1))
        self.keys = nn.Parameter(keys.view(pool, -1))

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Go on with the whole pool."""
        return [self.prompts, self.keys]

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes less the pull of the chosen keys."""
        near = cosines(self.vit.query(images), self.keys)
        chosen = nearest(near, self.top_k, shared=self.shared)
        logits = self.classify(self.prompted(images, chosen), self.training_rows(self._now().prompts))
        return F.cross_entropy(logits, targets) - self.pull * near.gather(1, chosen).sum(dim=1).mean()

    def encode(self, images: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)`` of images, each with its own prompts."""
        if self.task is None:
            return super().encode(images)
        chosen = nearest(cosines(self.vit.query(images), self.keys), self.top_k)
        return self.prompted(images, chosen)

    def prompted(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)`` of images beside the prompts of the numbers ``chosen (B, top_k)``."""
        with self.vit.appended(self.prompts[chosen].flatten(1, 2), read=self.read_prompts):
            return self.backbone.encode_images(images)

    def schedule(self, step: int) -> float:
        """Return 1: the learning rate is constant."""
        return 1.0

    def after_backward(self) -> None:
        """Clip the gradient."""
        assert self.optimizer is not None
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip_norm)

    def footprint(self) -> Footprint:
        """Count prompts and keys."""
        count = self.prompts.numel() + self.keys.numel()
        return Footprint(count, count, count)

    def tensors(self) -> dict[str, Tensor]:
        """Return prompts and keys."""
        return {"prompts": self.prompts.detach(), "keys": self.keys.detach()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        self.prompts.copy_(tensors["prompts"])
        self.keys.copy_(tensors["keys"])


def nearest(near: Tensor, k: int, *, shared: bool = False) -> Tensor:
    """Return which keys are nearest, int64 ``(B, k)``.

    Args:
        near: Cosines ``(B, M)``.
        k: How many to take.
        shared: Give every row the ``k`` that most rows would take; of equally many, those of lower number.

    Example:
        >>> near = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.2, 0.9], [0.8, 0.9, 0.1]])
        >>> nearest(near, 1).tolist(), nearest(near, 2, shared=True).tolist()
        ([[0], [2], [1]], [[0, 1], [0, 1], [0, 1]])
    """
    chosen = near.topk(k, dim=1).indices
    if not shared:
        return chosen
    votes = torch.bincount(chosen.flatten(), minlength=near.shape[1])
    return votes.sort(descending=True, stable=True).indices[:k].expand(len(near), -1)
