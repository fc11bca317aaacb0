"""Cross-domain task-agnostic incremental learning of CLIP: every question offers the classes of all domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clgym.labels import distinct
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching
from clgym.sources import TINY_CLIP, few_shot, image_source
from clgym.variants import Variant, not_negative

LEFT_OUT = 2  # position of CIFAR-100, and of the domain that stands for it, in MTIL's order I


class ClipXTAIL(Scenario):
    """Ten image domains learned one after another; every question is among the classes of all ten, seen or not.

    The domains are those of MTIL without CIFAR-100, in alphabetical order, with 16 training images per class
    (RAIL, arXiv:2406.18868). Neither training nor questions say which task they belong to, and a
    question's candidates are the union of all classes, 1,100 in the paper. So a method must tell domains
    apart, seen and unseen. Row 0 of ``R`` is zero-shot; Transfer, Avg and Last are MTIL's.

    Class names must differ between domains. Where two domains of the embedded or the hub source share a name
    (a "ginger cat" is an aircraft and a car, a "sunflower" an object and a flower), each of them appends its
    word of :data:`clgym.sources.WORDS`, to the name and in the prompts: "ginger cat car". In a folder, names are the
    user's.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).

    Departs from the paper: the few-shot lists of CoOp and its test splits are not on the hub, so shots are
    drawn from MTIL's training halves with the run's seed, and MTIL's test halves are asked (Caltech101 keeps
    its 101 classes). A class with fewer images gives all of them once; the paper draws with replacement.
    Every class is asked with the templates of its own set, as CoDyRA does; RAIL has one template for all,
    so zero-shot numbers differ from its.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``: the picture world and a tiny CLIP; ``"hub"``: the ten data sets and ViT-B/16 of
            the paper; or a folder with one sub-folder per domain (see :mod:`clgym.folder`), all of them used.
        shots: Training samples per class; 0 takes all.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells where a domain begins.
        passes: Passes over each domain's training data, in place of ``steps``; 1 is the online setting, in batches of
            10; 0 leaves it to ``steps``.
        blur: Share of each domain's training samples that is exchanged for other domains'.
        tasks: Play the first so many domains only, with the union of their classes; 0 plays all.
        steps: ``Train`` events per domain; 0 takes the source's constant, 500 or, on the tiny CLIP, 100.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-clip"`` or an open_clip name such as
            ``"ViT-B-16/openai"``; the other sources have their own.
        probe_every: Ask about the domains seen so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed, or its domains share class names.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-XTAIL-v0",
        title="Cross-domain task-agnostic incremental learning with CLIP",
        paper="arXiv:2406.18868",
        kind="class-incremental",
        modality="image",
        description=(
            "Ten image domains (aircraft, objects, textures, satellite, flowers, food, digits, pets, cars, scenes) "
            "are learned one after another from 16 images per class. Every question offers the classes of all ten "
            "domains, learned or not, and does not say its own, so domains must be told apart as well as classes."
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
        shots: int = 16,
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
        not_negative(shots=shots, tasks=tasks, probe_every=probe_every)
        self._variant = Variant(boundaries, passes, blur, steps)
        self._domains = image_source(source, backbone)
        counts = dict(zip(self._domains.domains, self._domains.classes, strict=True))
        names = self._domains.domains
        if self._domains.words:
            names = names[:LEFT_OUT] + names[LEFT_OUT + 1 :]
        self._names = names[: tasks or None]
        self._domains.require(self._names, self.spec.id)
        if not self._domains.words:
            distinct([self._domains.load(name) for name in self._names], {})
        self._shots = shots
        self.source, self.backbone = self._domains.name, self._domains.backbone
        self.shape = (self._domains.size, self._domains.size, 3)
        self.classes = sum(counts[name] for name in self._names)
        real = self.backbone != TINY_CLIP
        usual = Teaching(
            batch_size=64 if real else 32,
            steps=500 if real else 100,
            task_given=False,
            labels="union",
            probe_every=probe_every,
            prequential=prequential,
        )
        self.teaching = self._variant.teach(usual)

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the domains in order, with distinct class names; ``rng`` draws the few-shot samples, then the blur."""
        loaded = distinct([self._domains.load(name) for name in self._names], self._domains.words)
        shown = [few_shot(task, self._shots, rng) for task in loaded] if self._shots else loaded
        return self._variant.mix(shown, rng)
