"""Class-incremental streams for CLIP: CIFAR-100 and ImageNet-100, in the setting of ZSCL and LingoCL.

After each task all classes learned so far are asked together, by name, and no question says which task it is from
(Continual-CLIP, ZSCL arXiv:2303.06628, LingoCL arXiv:2403.16124). ``R[t, j]`` is the accuracy on the test data of task
``j`` among the classes of tasks 1 to ``t``; what is not learned yet is not asked, so that row 0 and all above the
diagonal is NaN.

Departs from ZSCL: training crops a little (0.9 to 1 of the area), which ZSCL does not. The number of passes is stated
in one of its released configurations only, as 1, and taken for all.
"""

from __future__ import annotations

from clgym.errors import SettingError
from clgym.increments import Incremental, Increments
from clgym.scenario import ScenarioSpec
from clgym.sources import class_source
from clgym.variants import Variant

# Number of tasks, and classes of the first one; 0 is as many as the others have.
PROTOCOLS = {"10-10": (10, 0), "50-5": (11, 50), "50-10": (6, 50)}


class ClipCIFAR100(Incremental):
    """CIFAR-100's classes in 10, 20 or 50 tasks.

    The prompt is ZSCL's "a bad photo of a {}." (hub), "a photo of a {}." (embedded) or the folder's own. The embedded
    source has a hundred classes of the picture world, from eight domains that the order mixes.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        splits: Number of tasks, 10, 20 or 50; 0 is 10. A folder may be divided otherwise.
        order: Order of the classes: ``"zscl"``, which is iCaRL's, ``"pilot"`` (NumPy, seed 1993), ``"coda"`` (Python,
            ``coda_seed``) or ``"drawn"`` from the run's seed; ``""`` is ``"zscl"``, or for a folder ``"pilot"``.
        coda_seed: Seed of order ``"coda"``; 0 is the listed order.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in a style of
            its own; ``"instance"``: all tasks have all classes, in new pictures.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 1, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-clip"`` or an open_clip name such as
            ``"ViT-B-16/openai"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-CIFAR100-CIL-v0",
        title="Class-incremental CIFAR-100 with CLIP",
        paper="arXiv:2303.06628",
        kind="class-incremental",
        modality="image",
        description=(
            "A hundred classes are learned in 10, 20 or 50 tasks. After each, all classes learned so far are asked "
            "together by name, and no question says which task it is from."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(("embedded pictures", "Apache-2.0, drawn by the package"), ("hub", "not stated")),
        tags=("domain-incremental", "instance-incremental", "task-free", "online", "blurred-boundary"),
        hub=("cifar100",),
        hub_backbone="ViT-B-16/openai",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        splits: int = 0,
        order: str = "",
        coda_seed: int = 0,
        shift: str = "class",
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
        self.set_up(
            Increments(
                class_source("cifar100", source, backbone, "clip", "a bad photo of a {}."),
                allowed=(10, 20, 50),
                orders=("zscl", "pilot", "coda", "drawn"),
                splits=splits,
                order=order,
                coda_seed=coda_seed,
                shift=shift,
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=64,
            passes=1,
            probe_every=probe_every,
            prequential=prequential,
        )


class ClipImageNet100(Incremental):
    """ImageNet-100's classes in tasks of ten, or half of them first and then five or ten at a time.

    The hundred classes are ImageNet's first synsets, n01440764 to n01855672, in the order of NumPy's seed 1993, with
    the prompt "a good photo of a {}." (hub). Two other sets of that name hold other classes, which is checked. The
    embedded source has the first hundred classes of the picture world and the prompt "a photo of a {}.".

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        protocol: Classes of the first task and of each later one: ``"10-10"``, ``"50-5"`` or ``"50-10"``. A folder has
            as many tasks of its own number of classes, and half of them first where the protocol has.
        order: Order of the classes: ``"pilot"`` (NumPy, seed 1993), ``"coda"`` (Python, ``coda_seed``) or
            ``"drawn"`` from the run's seed; ``""`` is ``"pilot"``.
        coda_seed: Seed of order ``"coda"``; 0 is the listed order.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in a style of
            its own; ``"instance"``: all tasks have all classes, in new pictures.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 1, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-clip"`` or an open_clip name such as
            ``"ViT-B-16/openai"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-ImageNet100-CIL-v0",
        title="Class-incremental ImageNet-100 with CLIP",
        paper="arXiv:2303.06628",
        kind="class-incremental",
        modality="image",
        description=(
            "A hundred classes are learned ten at a time, or fifty first and then five or ten at a time. After each "
            "task all classes learned so far are asked together by name, and no question says its task."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("hub", "ImageNet terms of access"),
        ),
        tags=("domain-incremental", "instance-incremental", "task-free", "online", "blurred-boundary"),
        hub=("imagenet100",),
        hub_backbone="ViT-B-16/openai",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        protocol: str = "10-10",
        order: str = "",
        coda_seed: int = 0,
        shift: str = "class",
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
        if protocol not in PROTOCOLS:
            raise SettingError(f"Expected protocol as one of {', '.join(PROTOCOLS)}; got {protocol!r}. Choose one.")
        count, first = PROTOCOLS[protocol]
        self.set_up(
            Increments(
                class_source("imagenet100", source, backbone, "clip", "a good photo of a {}."),
                allowed=(count,),
                orders=("pilot", "coda", "drawn"),
                first=first,
                order=order,
                coda_seed=coda_seed,
                shift=shift,
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=128,
            passes=1,
            probe_every=probe_every,
            prequential=prequential,
        )
