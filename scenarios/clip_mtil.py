"""Multi-domain task-incremental learning of CLIP: eleven domains in a row, zero-shot ability at stake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clgym.errors import SettingError
from clgym.labels import distinct
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching
from clgym.sources import TINY_CLIP, few_shot, image_source
from clgym.variants import Variant, not_negative

ORDER_II = (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2)  # positions in order I


class ClipMTIL(Scenario):
    """Eleven image domains learned one after another; every domain is asked after each, seen or not.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes of the asked domain, whose identity is given.
    Row 0 of ``R`` is zero-shot. Transfer, Avg and Last are those of ZSCL (arXiv:2303.06628).

    With hidden or blurred boundaries a training batch is not of one domain's classes alone, so class names must differ
    between domains; those that two share get their domain's word of :data:`clgym.sources.WORDS`, as in
    ``CLIP-XTAIL-v0``. A question still offers the classes of its own domain.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``: the picture world and a tiny CLIP; ``"hub"``: the eleven data sets and
            ViT-B/16 of the paper; or a folder with one sub-folder per domain (see :mod:`clgym.folder`).
        order: ``"I"`` (alphabetical) or ``"II"``, as in ZSCL; a folder has order I only.
        shots: Training samples per class; 0 takes all. The paper's few-shot setting is 5.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells where a domain begins.
        passes: Passes over each domain's training data, in place of ``steps``; 1 is the online setting, in batches of
            10; 0 leaves it to ``steps``.
        blur: Share of each domain's training samples that is exchanged for other domains'.
        tasks: Play the first so many domains of the order only; 0 plays all.
        steps: ``Train`` events per domain; 0 takes the source's constant.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-clip"`` or an open_clip name such as
            ``"ViT-B-16/openai"``; the other sources have their own.
        probe_every: Ask about the domains seen so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed, or its domains share class names where they must not.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-MTIL-v0",
        title="Multi-domain task-incremental learning with CLIP",
        paper="arXiv:2303.06628",
        kind="task-incremental",
        modality="image",
        description=(
            "Eleven image domains (aircraft, objects, small objects, textures, satellite, flowers, food, digits, "
            "pets, cars, scenes) are learned one after another. After each, all eleven are asked with their own "
            "class names, so that both forgetting and the loss of zero-shot ability show."
        ),
        metrics=(
            "mtil_transfer",
            "mtil_avg",
            "mtil_last",
            "average_accuracy",
            "backward_transfer",
            "forward_transfer",
            "forgetting",
            "learning_accuracy",
        ),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("embedded digits", "CC BY 4.0, UCI Optical Recognition of Handwritten Digits, via scikit-learn"),
            ("hub", "each data set's own; see clgym.hub_sets"),
        ),
        tags=("task-free", "online", "blurred-boundary"),
        hub=(
            "aircraft",
            "caltech101",
            "cifar100",
            "dtd",
            "eurosat",
            "flowers",
            "food",
            "mnist",
            "oxford_pet",
            "stanford_cars",
            "sun397",
        ),
        hub_backbone="ViT-B-16/openai",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        order: str = "I",
        shots: int = 0,
        boundaries: str = "given",
        passes: int = 0,
        blur: float = 0.0,
        tasks: int = 0,
        steps: int = 0,
        backbone: str = "",
        probe_every: int = 0,
        prequential: bool = False,
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        if order not in ("I", "II"):
            raise SettingError(f"Expected order 'I' or 'II'; got {order!r}. Choose one of these.")
        not_negative(shots=shots, tasks=tasks, probe_every=probe_every)
        self._variant = Variant(boundaries, passes, blur, steps)
        self._domains = image_source(source, backbone)
        names = self._domains.domains
        if order == "II":
            if len(names) != len(ORDER_II):
                raise SettingError(
                    f"Expected order 'I' for a folder of {len(names)} domains; got 'II'. "
                    "Order II ranks the eleven of MTIL."
                )
            names = tuple(names[i] for i in ORDER_II)
        self._names = names[: tasks or None]
        self._domains.require(self._names, self.spec.id)
        self._shots = shots
        self.source, self.backbone = self._domains.name, self._domains.backbone
        self.shape = (self._domains.size, self._domains.size, 3)
        # Where domains meet in one start or one batch, their names must differ.
        self._mixed = boundaries == "hidden" or blur > 0
        if self._mixed and not self._domains.words:
            distinct([self._domains.load(name) for name in self._names], {})
        self.classes = (sum if self._mixed else max)(self._domains.classes)
        real = self.backbone != TINY_CLIP
        usual = Teaching(
            batch_size=64 if real else 32,
            steps=(500 if shots else 1000) if real else 100,
            probe_every=probe_every,
            prequential=prequential,
        )
        self.teaching = self._variant.teach(usual)

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the domains in order; ``rng`` draws the few-shot samples, then what blurred boundaries exchange."""
        loaded = [self._domains.load(name) for name in self._names]
        named = distinct(loaded, self._domains.words) if self._mixed else loaded
        shown = [few_shot(task, self._shots, rng) for task in named] if self._shots else named
        return self._variant.mix(shown, rng)
