"""What every gradient method shares: device, optimizer per task, schedule, loss, classifier, answers, state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import Agent, Footprint, Setup
from clgym.attention import Encoders, lora_targets, part_of, unfold_attention
from clgym.backbones import ClipBackbone, load_backbone
from clgym.detection_head import DetectionHead, head_for
from clgym.device import pick_device, pick_precision
from clgym.distil import sigmoid_loss
from clgym.erasing import RetainFinetune, drop_from
from clgym.errors import SettingError
from clgym.events import Answer, Array, Erase, EraseEnd, EraseRequest, Inputs, Query, TaskEnd, TaskStart, Train
from clgym.inside import acting_weights, listening
from clgym.lora import Gate, LoRASet, adapt
from clgym.optim import AdamWProx, load_moments, moments
from clgym.seeds import agent_seed

Prompts = tuple[tuple[str, ...], ...]
CLASS_LOSSES = ("ce", "bce")
EVEN_COSINE = 0.25  # on CLIP, where a sigmoid says one half: between matching and other pairs (tiny CLIP: 0.36, 0.18)


class Learner(Agent):
    """A pre-trained model and one optimizer per task; subclasses say what is trained and on what loss.

    The classifier follows the backbone. On CLIP a class is the feature of its prompts, compared by cosine. On a plain
    vision transformer it is a row of a head that grows at each task, known by its first prompt and trained beside what
    the method trains; classes without a row get next to no probability, or all the same if none has one.

    A subclass fills in :meth:`begin` (returns what the task trains) and may override :meth:`loss`,
    :meth:`after_backward`, :meth:`after_step` and :meth:`end`; to forget on request in a way of its own,
    :meth:`begin_erasure`, :meth:`erase` and :meth:`end_erasure`; and, if it keeps samples, :meth:`drop_samples`.

    Args:
        setup: What is known of the stream.
        lr: Peak learning rate of AdamW.
        betas: AdamW's decay rates.
        weight_decay: AdamW's weight decay.
        warmup: Share of a task's steps with rising learning rate; the rest is a cosine to 0.
        label_smoothing: Of the cross-entropy, in [0, 1).
        ensemble: Average a class's text features over all its templates when answering, as ZSCL does,
            rather than use the training template alone.
        class_loss: ``"ce"``: softmax cross-entropy, or ``"bce"``: a sigmoid's per class, summed over classes.

    Raises:
        SettingError: A setting is out of range, or the device is not there.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        label_smoothing: float = 0.0,
        ensemble: bool = True,
        class_loss: str = "ce",
    ) -> None:
        """Load the backbone frozen."""
        super().__init__(setup)
        if lr <= 0:
            raise SettingError(f"Expected lr above 0; got {lr}. Try 1e-3.")
        if not 0 <= warmup < 1 or not 0 <= label_smoothing < 1:
            raise SettingError(
                f"Expected warmup and label_smoothing in [0, 1); got {warmup} and {label_smoothing}. Try 0."
            )
        if class_loss not in CLASS_LOSSES:
            raise SettingError(
                f"Expected class_loss to be one of {CLASS_LOSSES}; got {class_loss!r}. Choose one of these."
            )
        self.lr, self.betas, self.weight_decay, self.class_loss = lr, betas, weight_decay, class_loss
        self.warmup, self.label_smoothing, self.ensemble = warmup, label_smoothing, ensemble
        self.device = pick_device(setup.device)
        self.generator = torch.Generator().manual_seed(agent_seed(setup.seed))
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=pick_precision(setup.precision))
        self.backbone = load_backbone(setup.backbone, self.device)
        self.scale = math.exp(self.clip.logit_scale) if setup.reads_text else 1.0
        self.head = None if setup.reads_text else head_for(self.backbone, self.backbone.embed_dim, self.device)
        self.lora: LoRASet | None = None
        self.erasing = RetainFinetune()
        self.task: TaskStart | None = None
        self.step, self.steps = 0, 1
        self.optimizer: torch.optim.Optimizer | None = None
        self.head_share, self.text_trains, self.moves_rows = 1.0, False, False  # rows: also outside of a task
        self._texts: dict[tuple[Prompts, bool], Tensor] = {}

    @property
    def clip(self) -> ClipBackbone:
        """The backbone, where it reads texts."""
        assert isinstance(self.backbone, ClipBackbone)
        return self.backbone

    def adapt(
        self,
        *,
        r: int,
        alpha: float = 0.0,
        targets: Encoders = "all",
        gate: Gate = "none",
        layers: tuple[str, ...] = (),
    ) -> LoRASet:
        """Put fresh adapters on the six linears of every block; they change nothing yet.

        Args:
            r: Rank of every adapter.
            alpha: The update is multiplied by ``alpha / r``; 0 means by 1.
            targets: ``"all"``, ``"vision"`` or ``"text"``: which encoders.
            gate: How importances start, see :class:`clgym.lora.LoRALinear`.
            layers: Last parts of the names of the linears, such as ``("q_proj",)``; none means all six.
        """
        self.text_trains = targets != "vision"
        model = unfold_attention(self.backbone.model)
        names = [n for n in lora_targets(model, targets) if not layers or part_of(n) in layers]
        return adapt(model, r=r, alpha=alpha or None, targets=names, gate=gate, generator=self.generator)

    def merge_and_renew(self) -> torch.nn.Parameter:
        """Merge the adapters into the weights, draw fresh ones, and return their flat parameter."""
        assert self.lora is not None
        self.lora.merge_()
        self.lora.reset(self.generator)
        return self.lora.arena()

    @abstractmethod
    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Prepare for a task and return what it trains."""

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch: image-to-text cross-entropy over the task's classes.

        Args:
            images: uint8 ``(B, H, W, 3)``.
            targets: int64 ``(B,)``, indices into the task's classes.
        """
        return self.cross_entropy(images, targets, self._now().prompts)

    def after_backward(self) -> None:
        """Act on the gradients before the optimizer does."""

    def after_step(self) -> None:
        """Act on the parameters after the optimizer has; ``self.step`` counts from 0."""

    def end(self) -> None:
        """Put the task away."""

    def cross_entropy(self, images: Tensor, targets: Tensor, prompts: Prompts) -> Tensor:
        """Return the image-to-class loss over the classes of ``prompts``, see :meth:`against_labels`."""
        return self.against_labels(self.logits(images, self.training_rows(prompts)), targets)

    def against_labels(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the ``class_loss`` of logits ``(B, C)`` against labels ``(B,)``, averaged; of boxes the set loss."""
        if isinstance(self.head, DetectionHead):
            return self.head.loss(logits, targets)
        if self.class_loss == "ce":
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return sigmoid_loss(self.log_odds(logits), F.one_hot(targets, logits.shape[1]).to(logits))

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return what a sigmoid per class reads: a head's logits, or CLIP's counted from :data:`EVEN_COSINE`."""
        return logits if self.head is not None else logits - self.scale * EVEN_COSINE

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of images over classes, see :meth:`classify`."""
        return self.classify(self.encode(images), rows)

    def encode(self, images: Tensor) -> Tensor:
        """Return the features ``(B, d)`` of images that the classifier reads."""
        return self.backbone.encode_images(images)

    def classify(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return logits ``(B, C)``: scaled cosines to texts ``(C, d)``, or a head's rows ``(C, width)`` applied."""
        if self.head is None:
            return self.scale * features @ rows.T
        return self.head.classify(features, rows)

    def begin_task(self, event: TaskStart) -> None:
        """Build the task's optimizer over what :meth:`begin` returns and the head."""
        self.task = event
        self._text_changed()
        if self.head is not None:
            self.head.grow(_names(event.prompts), self.generator)
        self.start_optimizer(self.begin(event), event.steps)

    def start_optimizer(self, parameters: Sequence[torch.nn.Parameter], steps: int) -> None:
        """Begin a schedule of ``steps`` over ``parameters``, and the head's at ``head_share`` of their learning rate.

        Without anything to train there is no training.
        """
        self.step, self.steps, self.optimizer = 0, max(steps, 1), None
        groups = [{"params": list(parameters), "share": 1.0}]
        if self.head is not None and len(self.head):
            groups.append({"params": self.head.trained(), "share": self.head_share})
        groups = [group for group in groups if group["params"]]
        if groups:
            self.optimizer = AdamWProx(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def learn(self, event: Train) -> None:
        """Take one optimizer step."""
        with self.autocast:
            loss = self.loss(*self.to_device(event.inputs, event.targets))
        self.update(loss)

    def update(self, loss: Tensor) -> None:
        """Step down the gradient of a loss, at the schedule's learning rate."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["share"] * self.schedule(self.step)
        self.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(loss)
        self.after_backward()
        self.optimizer.step()
        self.after_step()
        self.step += 1
        self._text_changed()

    def schedule(self, step: int) -> float:
        """Return the learning rate of a step as a share of its peak: linear warm-up, then cosine to 0."""
        rise = int(self.warmup * self.steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise)))

    def end_task(self, event: TaskEnd) -> None:
        """Let the method put the task away, and drop the optimizer."""
        del event
        self.end()
        self.optimizer = None
        self._text_changed()

    def drop_samples(self, ids: Tensor) -> None:
        """Let go of the stored samples with these ids, int64 ``(n,)``, and of all that is kept of them one by one."""
        drop_from(getattr(self, "memory", None), ids)

    def begin_erasure(self, event: EraseRequest) -> None:
        """Drop the stored samples that must go."""
        self.erasing.begin(self, event)

    def erase(self, event: Erase) -> None:
        """Train on what may be read to retain."""
        self.erasing.erase(self, event)

    def end_erasure(self, event: EraseEnd) -> None:
        """Put the retained samples away."""
        self.erasing.end(self, event)

    @torch.inference_mode()
    def answer(self, event: Query) -> Answer:
        """Return log-probabilities over the candidates, float32 ``(B, C)``, or detections ``(B, Q, 4 + C)``."""
        images, _ = self.to_device(event.inputs, None)
        with self.autocast:
            logits = self.answering_logits(images, event.prompts).float()
        return (logits.log_softmax(dim=-1) if self.head is None else self.head.answer(logits)).cpu().numpy()

    def answering_logits(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Return logits ``(B, C)`` over candidates, of which a head may have met only some."""
        if self.head is None:
            return self.logits(images, self.class_rows(prompts, self.ensemble))
        met = self.head.met(_names(prompts))
        known = tuple(texts for texts, is_met in zip(prompts, met.tolist(), strict=True) if is_met)
        if not known:
            return self.head.unmet(len(images), len(prompts))
        return self.head.spread(self.logits(images, self.class_rows(known, self.ensemble)).float(), met)

    @torch.inference_mode()
    def features(self, inputs: Inputs) -> Array | None:
        """Return what :meth:`encode` gives, float32 ``(B, d)``."""
        with self.autocast:
            return self.encode(self.to_device(inputs, None)[0]).float().flatten(1).cpu().numpy()

    def activations(self, inputs: Inputs) -> Sequence[Array] | None:
        """Return the hidden units of the image encoder's feed-forward parts, see :func:`clgym.inside.listening`."""
        with listening(self.backbone.model) as heard:
            self.features(inputs)
        return list(heard.values())

    def matrices(self) -> Iterator[Array] | None:
        """Return the image encoder's parameters, adapters added to them; a mixture that depends on inputs has none."""
        return acting_weights(self.backbone.model)

    def training_rows(self, prompts: Prompts) -> Tensor:
        """Return a row per class ``(C, d)`` of the training templates, with gradient if texts or head learn."""
        if self.head is not None or self.text_trains:
            return self.fresh_rows(prompts, ensemble=False)
        return self.class_rows(prompts, ensemble=False)

    def earlier_rows(self, prompts: Prompts) -> Tensor:
        """Return a row per class of earlier tasks, with gradient if the text encoder learns; a head's stay fixed."""
        if self.head is None and self.text_trains:
            return self.fresh_rows(prompts, ensemble=False)
        return self.class_rows(prompts, ensemble=False)

    def class_rows(self, prompts: Prompts, ensemble: bool) -> Tensor:
        """Return a row per class without gradient; text features are kept until the text encoder changes."""
        if self.head is not None:
            return self.fresh_rows(prompts, ensemble).detach()
        if (prompts, ensemble) not in self._texts:
            # Not in inference mode: a frozen text encoder's features also serve in training.
            with torch.inference_mode(False), torch.no_grad():
                self._texts[prompts, ensemble] = self.fresh_rows(prompts, ensemble)
        return self._texts[prompts, ensemble]

    def fresh_rows(self, prompts: Prompts, ensemble: bool) -> Tensor:
        """Compute a row per class: its text features ``(C, d)`` or its rows of the head ``(C, width)``."""
        if self.head is not None:
            return self.head.rows(_names(prompts))
        return self.clip.class_features(prompts, ensemble)

    def _text_changed(self) -> None:
        if self.text_trains:
            self._texts.clear()

    def to_device(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return a batch as tensors on the device."""
        images = torch.from_numpy(inputs).to(self.device, non_blocking=True)
        labels = torch.empty(0) if targets is None else torch.from_numpy(targets).to(self.device, non_blocking=True)
        return images, labels

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that training has changed, by name; by default those of ``self.lora``."""
        return {} if self.lora is None else self.lora.named_tensors(with_base=True)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        if self.lora is not None:
            self.lora.load_tensors(tensors)

    def footprint(self) -> Footprint:
        """Count the adapter's parameters; merged methods keep and add none."""
        return Footprint(trainable=0 if self.lora is None else self.lora.trainable_count)

    def state_dict(self) -> dict[str, Any]:
        """Return step, generator, task, head, optimizer moments and what :meth:`tensors` names."""
        state = {"step": self.step, "generator": self.generator.get_state(), **self.erasing.state_dict()}
        if self.task is not None:
            state["task"] = [getattr(self.task, field.name) for field in fields(self.task)]
        if self.head is not None:
            state |= {"classes": self.head.groups} | {f"head.{name}": rows for name, rows in self.head.state().items()}
        if self.optimizer is not None:
            state["moments"] = True
            state |= {f"optimizer.{name}": value for name, value in moments(self.optimizer).items()}
        return state | {f"tensor.{name}": value for name, value in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was called."""
        parts: dict[str, dict[str, Any]] = {"optimizer": {}, "tensor": {}, "head": {}}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind in parts:
                parts[kind][name] = value
        if self.head is not None:
            self.head.restore(state["classes"], parts["head"])  # before the task, whose optimizer takes the rows
        if "task" in state:
            number, name, text, classes, prompts, samples, steps, noted = state["task"]
            words = tuple(tuple(templates) for templates in prompts)
            self.begin_task(TaskStart(number, name, text, tuple(classes), words, samples, steps, tuple(noted)))
        self.restore(parts["tensor"])
        if "moments" not in state:
            self.optimizer = None
        elif self.optimizer is not None:
            load_moments(self.optimizer, parts["optimizer"])
        self.step = state["step"]
        self.erasing.load_state_dict(state)
        self.generator.set_state(state["generator"])
        self._texts.clear()

    def _now(self) -> TaskStart:
        assert self.task is not None
        return self.task


def _names(prompts: Prompts) -> list[str]:
    """Return what a head knows classes by."""
    return [texts[0] for texts in prompts]


def learning_rate(lr: float | None, setup: Setup, *, real: float, tiny: float) -> float:
    """Return ``lr``, or where it is ``None`` the method's rate for the backbone at hand.

    Args:
        lr: What the user chose.
        setup: What is known of the stream.
        real: The paper's rate, for real models.
        tiny: The rate chosen on the embedded tiny CLIP, on a tuning seed that is not reported.
    """
    if lr is not None:
        return lr
    return tiny if setup.backbone.startswith("embedded/") else real
