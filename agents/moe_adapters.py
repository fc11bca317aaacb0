"""MoE-Adapters: experts beside every block of CLIP, a router a task, and a selector that knows each task's images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Block, text_blocks, vision_blocks
from clgym.errors import SettingError
from clgym.events import Array, TaskStart
from clgym.learner import Learner, Prompts, learning_rate

SCALE = 0.1  # of what the experts say
CODE_LR = 3e-3
MEMORY = 0.95  # of the running mean of an auto-encoder's error; the last twenty batches or so


class Experts(nn.Module):
    """Bottleneck adapters beside one block, of which a router mixes a few: ``sum_e w_e U_e relu(D_e x + b_e) + c_e``.

    The router of a task reads the first token of the stream after attention, and so chooses for a whole sample:
    ``w = softmax(top_k(c R))``; in training with the noise ``N(0, 1) * (softplus(c N) + 0.01)`` on its logits (Shazeer
    et al. 2017, arXiv:1701.06538). Fresh experts say nothing. All of a kind are one tensor; so are old routers.

    Args:
        d: Width of the stream.
        experts: How many.
        width: Of the bottleneck.
        top_k: Experts that are mixed.
        device: Where to.
    """

    routers: Tensor
    used: Tensor
    frozen: Tensor

    def __init__(self, d: int, experts: int, width: int, top_k: int, device: torch.device) -> None:
        """Draw nothing yet."""
        super().__init__()
        self.top_k = top_k
        shapes = {"down": (width, d), "down_bias": (width,), "up": (width, d), "up_bias": (d,)}
        zeros = {name: torch.zeros(experts, *shape, device=device) for name, shape in shapes.items()}
        self.weights = nn.ParameterDict({name: nn.Parameter(zero) for name, zero in zeros.items()})
        self.router = nn.Parameter(torch.zeros(d, experts, device=device))
        self.noise = nn.Parameter(torch.zeros(d, experts, device=device))
        self.register_buffer("routers", torch.zeros(0, d, experts, device=device))  # of earlier tasks
        self.register_buffer("used", torch.zeros(experts, dtype=torch.int64, device=device))
        self.register_buffer("frozen", torch.zeros(experts, dtype=torch.bool, device=device))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw experts that say nothing: ``D`` uniform within ``1 / sqrt(d)``, all else zero."""
        down = self.weights["down"]
        drawn = torch.rand(down.shape, generator=generator).to(down)
        down.copy_((2 * drawn - 1) / down.shape[-1] ** 0.5)

    @torch.no_grad()
    def renew(self) -> None:
        """Put the router away, and start another from zero."""
        self.routers = torch.cat([self.routers, self.router[None]])
        for part in (self.router, self.noise, self.used):
            part.zero_()

    @torch.no_grad()
    def freeze(self) -> None:
        """Fix the experts that the task has used most; of equally used ones, those of lower number."""
        self.frozen[self.used.sort(descending=True, stable=True).indices[: self.top_k]] = True

    def still(self) -> None:
        """Drop the gradient of the fixed experts."""
        for part in self.weights.values():
            if part.grad is not None:
                part.grad[self.frozen] = 0.0

    def forward(self, x: Tensor, routes: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return what the experts add to the stream.

        Args:
            x: ``(B, L, d)``.
            routes: Which task's router, int64 ``(B,)`` or ``(1,)``; -1 is none, and adds exactly nothing.
            noise: Add noise from here, as in training.
        """
        logits = self._logits(x[:, 0], routes.expand(len(x)), noise)
        top, chosen = logits.topk(self.top_k, dim=1)  # (B, k)
        w = top.softmax(dim=1) * (routes >= 0)[:, None]
        if noise is not None:
            self.used += torch.bincount(chosen.flatten(), minlength=len(self.used))
        down, down_bias, up, up_bias = (
            self.weights[name].index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
            for name in ("down", "down_bias", "up", "up_bias")
        )
        h = (x @ down.flatten(1, 2).mT + down_bias.flatten(1)[:, None]).relu()  # (B, L, k * width)
        h = h * w.repeat_interleave(down.shape[2], dim=1)[:, None]
        mixed: Tensor = SCALE * (h @ up.flatten(1, 2) + (w[..., None] * up_bias).sum(dim=1, keepdim=True))
        return mixed

    def _logits(self, first: Tensor, routes: Tensor, noise: torch.Generator | None) -> Tensor:
        if noise is None:
            routers = torch.cat([self.routers, self.router[None]]).transpose(0, 1)  # (d, T, E)
            every = (first @ routers.flatten(1)).view(len(first), *routers.shape[1:])  # (B, T, E)
            return every[torch.arange(len(first), device=first.device), routes]
        spread = F.softplus(first @ self.noise) + 0.01
        return first @ self.router + torch.randn(spread.shape, generator=noise).to(spread) * spread


class Selector(nn.Module):
    """An auto-encoder a task, which knows the task's images by their frozen features (DDAS, arXiv:2403.11549).

    ``e_t(x) = mean((s - sigmoid(V_t relu(U_t s + a_t) + b_t))^2)`` with ``s = sigmoid(sqrt(d) q(x))``.

    Args:
        d: Length of a feature.
        code: Length of a code.
        device: Where to.
    """

    usual: Tensor
    usuals: Tensor

    def __init__(self, d: int, code: int, device: torch.device) -> None:
        """Draw nothing yet."""
        super().__init__()
        shapes = {"encode": (d, code), "code_bias": (code,), "decode": (code, d), "bias": (d,)}
        zeros = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self.fresh = nn.ParameterDict({name: nn.Parameter(zero) for name, zero in zeros.items()})
        for name, zero in zeros.items():
            self.register_buffer(f"old_{name}", zero.new_zeros(0, *zero.shape))
        self.register_buffer("usual", torch.zeros((), device=device))  # error on the task's images
        self.register_buffer("usuals", torch.zeros(0, device=device))  # those of earlier tasks

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw an auto-encoder as ``nn.Linear`` is drawn."""
        for names in (("encode", "code_bias"), ("decode", "bias")):
            bound = len(self.fresh[names[0]]) ** -0.5
            for part in (self.fresh[name] for name in names):
                part.copy_(bound * (2 * torch.rand(part.shape, generator=generator) - 1))
        self.usual.zero_()

    @torch.no_grad()
    def renew(self, generator: torch.Generator) -> None:
        """Put the auto-encoder away, and start another."""
        for name, part in self.all().items():
            setattr(self, f"old_{name}", part.detach())
        self.usuals = torch.cat([self.usuals, self.usual[None]])
        self.reset(generator)

    def all(self) -> dict[str, Tensor]:
        """Return the auto-encoders of all tasks, one tensor for each of their parts."""
        return {name: torch.cat([getattr(self, f"old_{name}"), part[None]]) for name, part in self.fresh.items()}

    def loss(self, features: Tensor) -> Tensor:
        """Return the task's mean error over a batch ``(B, d)``, and remember it."""
        error = errors(features, {name: part[None] for name, part in self.fresh.items()}).mean()
        with torch.no_grad():
            self.usual.copy_(error if self.usual == 0 else error.lerp(self.usual, MEMORY))
        return error

    def forward(self, features: Tensor, threshold: float) -> Tensor:
        """Return which task knows each image best, int64 ``(B,)``; -1 where the error is above the usual too far.

        Args:
            features: ``(B, d)``.
            threshold: Largest error, as a multiple of the auto-encoder's usual one.
        """
        least, route = errors(features, self.all()).min(dim=1)
        known = least <= threshold * torch.cat([self.usuals, self.usual[None]])[route]
        return torch.where(known, route, -1)


def errors(features: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """Return the error of each auto-encoder on each image, ``(B, T)``; see :class:`Selector`."""
    s = (features.float() * features.shape[1] ** 0.5).sigmoid()
    code = (s @ parts["encode"] + parts["code_bias"][:, None]).relu()  # (T, B, code)
    again = (code @ parts["decode"] + parts["bias"][:, None]).sigmoid()  # (T, B, d)
    errors: Tensor = (again - s).square().mean(dim=2).T
    return errors


class MoEAdapters(Learner):
    """Mixture-of-experts adapters (arXiv:2403.11549).

    Beside the feed-forward part of every block of both encoders stand :class:`Experts` that all tasks share, with a
    router a task. After a task, the experts that it used most are fixed in every block. At evaluation a
    :class:`Selector` says which task's routers an image takes, and its classes' texts with it; an image that no task
    knows is answered by the untouched CLIP.

    Args:
        setup: What is known of the stream.
        experts: Experts in each block.
        width: Of an expert's bottleneck; ``None`` is 64 on a real model and 8 on the tiny CLIP, as its width is 96
            rather than 768.
        top_k: Experts that are mixed, and that are fixed after a task.
        threshold: Largest error of an auto-encoder on an image of its task, as a multiple of its mean in training.
        code: Numbers that an auto-encoder squeezes a feature into; ``None`` is 100 on a real model and 8 on the tiny
            CLIP, whose features have 64: an auto-encoder that can copy every image knows none.
        lr: Peak learning rate of AdamW; ``None`` is 1e-3 on a real model and 5e-4 on the tiny CLIP.
        label_smoothing: Of the cross-entropy.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="moe_adapters-v0",
        title="MoE-Adapters",
        paper="arXiv:2403.11549",
        code="github.com/JiazuoYu/MoE-Adapters4CL@4572d97",
        family="architecture",
        departs=(
            "Each image is selected by itself; the code selects a batch, of one task, by its mean error. Auto-encoders "
            "read the frozen CLIP's features and learn beside the experts, at 3e-3; the code's read AlexNet's and are "
            "trained before, on a reference set too, which has no place here. So the threshold is a multiple of the "
            "error in training and not the code's 0.0655 for AlexNet. One learning rate serves all tasks, the median "
            "of the code's. In the text encoder the first token, which sees itself alone, chooses the experts of all "
            "texts of a task alike, as in the code. No dropout in experts; the code has 0.1. The load-balancing term, "
            "which it computes and leaves out, is left out."
        ),
        mergeable=False,
        needs_text=True,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        experts: int = 22,
        width: int | None = None,
        top_k: int = 2,
        threshold: float = 2.0,
        code: int | None = None,
        lr: float | None = None,
        label_smoothing: float = 0.2,
        ensemble: bool = True,
    ) -> None:
        """Put experts beside the blocks; they say nothing yet."""
        super().__init__(
            setup,
            lr=learning_rate(lr, setup, real=1e-3, tiny=5e-4),
            warmup=0.1,
            label_smoothing=label_smoothing,
            ensemble=ensemble,
        )
        tiny = setup.backbone.startswith("embedded/")
        width = (8 if tiny else 64) if width is None else width
        code = (8 if tiny else 100) if code is None else code
        if not 1 <= top_k <= experts or min(width, code) < 1 or threshold < 0:
            raise SettingError(
                f"Expected top_k from 1 to experts, width and code of 1 or more and threshold of 0 or more; got "
                f"{top_k} of {experts}, {width}, {code} and {threshold}. The paper has 2 of 22, 64 and 100."
            )
        self.threshold, self.tasks, self.text_trains = threshold, 0, True
        self.routes: Tensor | None = None
        self.noise: torch.Generator | None = None
        self.experts: list[Experts] = []
        for block in (*vision_blocks(self.clip.model), *text_blocks(self.clip.model)):
            made = Experts(block.attention.q_proj.in_features, experts, width, top_k, self.device)
            made.reset(self.generator)
            self._put_beside(block, made)
            self.experts.append(made)
        self.selector = Selector(self.clip.embed_dim, code, self.device)
        self.parts = nn.ModuleDict({"experts": nn.ModuleList(self.experts), "selector": self.selector})
        self._rows: dict[tuple[Prompts, int], Tensor] = {}

    def _put_beside(self, block: Block, experts: Experts) -> None:
        """Let experts read the stream after attention and add to what the feed-forward part says."""
        stream: list[Tensor] = []

        def read(_: Any, inputs: tuple[Tensor, ...]) -> None:
            if self.routes is not None:
                stream[:] = inputs

        def add(_: Any, __: Any, output: Tensor) -> Tensor:
            return output if self.routes is None else output + experts(stream.pop(), self.routes, self.noise)

        block.norm.register_forward_pre_hook(read)
        block.mlp.register_forward_hook(add)

    @contextmanager
    def routed(self, routes: Tensor, noise: torch.Generator | None = None) -> Iterator[None]:
        """Encode with the routers ``routes`` for a while; else the model is the untouched CLIP."""
        self.routes, self.noise = routes, noise
        try:
            yield
        finally:
            self.routes = self.noise = None

    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Give the task routers and an auto-encoder of its own."""
        if self.tasks:
            for experts in self.experts:
                experts.renew()
            self.selector.renew(self.generator)
        else:
            self.selector.reset(self.generator)
        self.tasks += 1
        return [p for experts in self.experts for p in experts.parameters()]

    def start_optimizer(self, parameters: Sequence[nn.Parameter], steps: int) -> None:
        """Begin a schedule; the auto-encoder has a learning rate of its own."""
        super().start_optimizer(parameters, steps)
        assert self.optimizer is not None
        group = {"params": list(self.selector.fresh.values()), "share": CODE_LR / self.lr}
        self.optimizer.add_param_group(group)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the task's classes plus the error of its auto-encoder."""
        with torch.no_grad():
            features = self.clip.encode_images(images)
        with self.routed(torch.full((1,), self.tasks - 1, device=self.device), self.generator):
            return super().loss(images, targets) + self.selector.loss(features)

    def after_backward(self) -> None:
        """Keep fixed experts as they are."""
        for experts in self.experts:
            experts.still()

    def end(self) -> None:
        """Fix the experts that the task has used most."""
        for experts in self.experts:
            experts.freeze()

    def encode(self, images: Tensor) -> Tensor:
        """Return the features of images, by the routers of the task that knows each unless routes are set."""
        if not self.tasks or self.routes is not None:
            return super().encode(images)
        with self.routed(self.selector(self.clip.encode_images(images), self.threshold)):
            return super().encode(images)

    def matrices(self) -> Iterator[Array] | None:
        """Return none: the mixture depends on the input."""
        return None

    def answering_logits(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Return logits ``(B, C)``: image and texts by the routers of the task that knows the image, or by CLIP."""
        features = self.clip.encode_images(images)
        if not self.tasks:
            return self.classify(features, self.class_rows(prompts, self.ensemble))
        routes = self.selector(features, self.threshold)
        with self.routed(routes):
            features = self.clip.encode_images(images)
        present, place = routes.unique(return_inverse=True)
        rows = torch.stack([self._routed_rows(prompts, route) for route in present.tolist()])  # (routes, C, d)
        return self.scale * torch.einsum("bd,bcd->bc", features, rows[place])

    def _routed_rows(self, prompts: Prompts, route: int) -> Tensor:
        """Return the text features of classes by the routers of a task; -1 is by CLIP."""
        if route < 0:
            return self.class_rows(prompts, self.ensemble)
        if (prompts, route) not in self._rows:
            with self.routed(torch.full((1,), route, device=self.device)):
                self._rows[prompts, route] = self.fresh_rows(prompts, self.ensemble)
        return self._rows[prompts, route]

    def _text_changed(self) -> None:
        super()._text_changed()
        self._rows.clear()

    def footprint(self) -> Footprint:
        """Count what the task trains; all that is kept, without the noise; and what one answer may use of it."""
        coder = sum(p.numel() for p in self.selector.fresh.values())
        pool = sum(p.numel() for experts in self.experts for p in experts.weights.values())
        fixed = sum(int(e.frozen.sum()) * sum(p[0].numel() for p in e.weights.values()) for e in self.experts)
        routers = sum(experts.router.numel() for experts in self.experts)
        kept = pool + self.tasks * (routers + coder)
        return Footprint(pool - fixed + 2 * routers + coder, kept, kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return experts, routers and auto-encoders."""
        return self.parts.state_dict() | {"tasks": torch.tensor(self.tasks)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        self.tasks = int(tensors.pop("tasks"))
        for key, value in tensors.items():
            owner, _, leaf = key.rpartition(".")
            part = self.parts.get_submodule(owner)
            if getattr(part, leaf).shape == value.shape:
                getattr(part, leaf).copy_(value)
            else:  # it grows with the tasks
                setattr(part, leaf, value.to(self.device))
