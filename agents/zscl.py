"""ZSCL: fine-tune, while the pre-trained CLIP teaches on reference images and texts, and average the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.distil import distillation
from clgym.errors import SettingError
from clgym.events import TaskStart
from clgym.images import ArrayImages, EncodedImages, FileStore
from clgym.learner import Learner, learning_rate
from clgym.seeds import agent_seed
from clgym.tuning import grouped, regrouped, tune_encoders

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
Reference = tuple[ArrayImages | EncodedImages, tuple[str, ...]]


class ZSCL(Learner):
    """Zero-shot continual learning (arXiv:2303.06628).

    On reference images and texts the pre-trained CLIP gives similarities ``s*``, the trained one ``s``. The loss is
    ``CE + weight * (KD(s, s*) + KD(s^T, s*^T)) + l2 * sum_j (theta_j - theta*_j)^2``, with ``KD`` the ``T^2``-scaled
    cross-entropy at temperature ``T`` over texts and over images, and ``theta*`` the weights before the task. The
    task leaves the mean of its weights: those before it and one sample every so many steps. Questions within a
    task are answered by the current weights.

    Args:
        setup: What is known of the stream.
        reference: Folder with images, in sub-folders or not, and ``captions.txt``, one text a line. The embedded
            backbone needs none: it takes pictures and captions drawn as those it was pre-trained on.
        samples: Reference pairs drawn for the embedded backbone, where no folder is given.
        weight: Weight of the distillation, 0 or more; higher keeps more.
        temperature: ``T``, above 0.
        l2: Weight of the distance to the weights before the task, 0 or more.
        average_every: Share of a task's steps between two samples of the mean; 0 keeps the last weights.
        lr: Peak learning rate of AdamW; ``None`` is 1e-5 on a real model and 1e-3 on the tiny CLIP.
        warmup: Share of a task's steps with rising learning rate.
        label_smoothing: Of the cross-entropy.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range, or there is no reference.
    """

    spec = AgentSpec(
        id="zscl-v0",
        title="ZSCL",
        paper="arXiv:2303.06628",
        code="github.com/Thunderbeee/ZSCL@08c6ef6",
        family="regularisation",
        departs=(
            "The paper's reference, ImageNet images and Conceptual Captions, is no part of a stream and does not ship. "
            "The embedded backbone is taught on pictures and captions of its own pre-training distribution, which is "
            "closer to the teacher than the paper's reference is; any other backbone on a folder that must be given. "
            "The reference is not counted as stored. Its texts are encoded by the pre-trained model on both sides, as "
            "in the released code, so that the distillation trains the image encoder. The mean is taken every tenth "
            "of a task, which is the paper's 100 of 1000 steps; the released loop samples once more, after the first "
            "step. One learning rate for all tasks, where the scripts have 5e-5 for Aircraft and MNIST. All of CLIP "
            "but the logit scale is trained, 149.6M parameters of ViT-B/16; tables print 129.6M, which is no sum of "
            "its parts."
        ),
        needs_text=True,
    )

    def __init__(
        self,
        setup: Setup,
        *,
        reference: str = "",
        samples: int = 2000,
        weight: float = 1.0,
        temperature: float = 2.0,
        l2: float = 1.0,
        average_every: float = 0.1,
        lr: float | None = None,
        warmup: float = 0.1,
        label_smoothing: float = 0.2,
        ensemble: bool = True,
    ) -> None:
        """Free the encoders, keep their pre-trained weights, and open the reference."""
        super().__init__(
            setup,
            lr=learning_rate(lr, setup, real=1e-5, tiny=1e-3),
            warmup=warmup,
            label_smoothing=label_smoothing,
            ensemble=ensemble,
        )
        if min(weight, l2) < 0 or temperature <= 0 or not 0 <= average_every <= 1 or samples < 10:
            raise SettingError(
                "Expected weight and l2 of 0 or more, temperature above 0, average_every in [0, 1] and samples of 10 "
                f"or more; got {weight}, {l2}, {temperature}, {average_every} and {samples}. Try 1, 1, 2, 0.1 and 2000."
            )
        self.weight, self.temperature, self.l2, self.average_every = weight, temperature, l2, average_every
        if reference or not setup.backbone.startswith("embedded/"):
            self.images, self.texts = read_reference(reference, self.backbone.image_size)
        else:
            self.images, self.texts = draw_reference(samples, agent_seed(setup.seed))
        self.weights = tune_encoders(self.backbone.model)
        self.text_trains = True
        self.pretrained = self.weights.copy()
        self.taught: Tensor | None = None
        self.before: dict[str, Tensor] = {}
        self.mean: dict[str, Tensor] = {}
        self.averaged = 0

    def begin(self, task: TaskStart) -> Sequence[torch.nn.Parameter]:
        """Anchor the weights where they are; the mean starts from them."""
        self.before, self.mean, self.averaged = self.weights.copy(), self.weights.copy(), 1
        return self.weights.parameters

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, the distillation in both directions and the distance to the last task."""
        loss = super().loss(images, targets) + self.l2 * self.weights.distance(self.before)
        drawn = torch.randint(len(self.images), (len(images),), generator=self.generator)
        pictures = torch.from_numpy(self.images.batch(drawn.numpy())).to(self.device)
        with self.weights.replaced(self.pretrained):
            taught = self.reference_texts()
            teacher = self.logits(pictures, taught)  # (B, texts)
        student = self.logits(pictures, taught)
        by_image = distillation(student, teacher, self.temperature)
        by_text = distillation(student.T, teacher.T, self.temperature)
        return loss + self.weight * (by_image + by_text)

    def reference_texts(self) -> Tensor:
        """Return the pre-trained features of the reference texts ``(texts, d)``; the weights must be its."""
        if self.taught is None:
            self.taught = self.clip.encode_texts(self.texts)
        return self.taught

    def after_step(self) -> None:
        """Add the weights to the mean when their time has come."""
        if self.average_every and (self.step + 1) % max(1, round(self.average_every * self.steps)) == 0:
            self.averaged += 1
            for name, value in self.weights.views().items():
                self.mean[name].lerp_(value, 1 / self.averaged)

    def end(self) -> None:
        """Go on from the mean."""
        if self.average_every:
            self.weights.put_(self.mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, those before the task, and the mean with its number of samples."""
        groups = grouped(weight=self.weights.views(), before=self.before, mean=self.mean)
        return groups | {"averaged": torch.tensor(self.averaged)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take them back."""
        self.averaged = int(tensors.pop("averaged"))
        groups = regrouped(tensors, self.device)
        self.weights.put_(groups["weight"])
        self.before, self.mean = groups["before"], groups["mean"]

    def footprint(self) -> Footprint:
        """Count the trained weights, the teacher, the weights before the task and the mean."""
        return Footprint(trainable=self.weights.count, stored=3 * self.weights.count)


def draw_reference(samples: int, seed: int) -> Reference:
    """Return pictures and their different captions, drawn as those that the tiny CLIP was pre-trained on."""
    from clgym.worlds import captions

    pictures, texts = captions.corpus(np.random.default_rng(seed), samples)
    return ArrayImages(pictures, np.zeros(len(pictures), np.int64)), tuple(dict.fromkeys(texts))


def read_reference(folder: str, size: int) -> Reference:
    """Return the images of a folder, read when they are asked for, and the lines of its ``captions.txt``.

    Raises:
        SettingError: There are no images or no texts.
    """
    root = Path(folder)
    listed = root / "captions.txt"
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES) if folder else []
    texts = listed.read_text(encoding="utf-8").split("\n") if folder and listed.is_file() else []
    texts = [text.strip() for text in texts if text.strip()]
    if not found or not texts:
        raise SettingError(
            f"Expected reference to be a folder with images and captions.txt; got {folder!r} with {len(found)} images "
            f"and {len(texts)} texts. Give one, such as ImageNet's images and captions of Conceptual Captions."
        )
    images = EncodedImages(FileStore(tuple(found)), np.zeros(len(found), np.int64), size)
    return images, tuple(dict.fromkeys(texts))
