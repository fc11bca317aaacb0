"""Class-incremental streams for a vision transformer without text: CIFAR-100, ImageNet-R, ImageNet-A and VTAB.

The protocol is that of PILOT and SEMA (arXiv:2403.18886): after each task all classes learned so far are asked
together, and no question says which task it is from. ``R[t, j]`` is the accuracy on the test data of task ``j`` among
the classes of tasks 1 to ``t``; what is not learned yet is not asked, so that row 0 and all above the diagonal is NaN.
``average_incremental_accuracy`` is the papers' A-bar where tasks are of one size. PILOT pools items: its last accuracy
is ``micro_accuracy``, and CODA-Prompt's is ``last``.

Departs from PILOT: every method is taught in SEMA's passes, in shuffled batches of 32.
"""

from __future__ import annotations

from clgym.increments import Incremental, Increments
from clgym.scenario import ScenarioSpec
from clgym.sources import class_source
from clgym.variants import Variant

PILOT_ORDERS = ("pilot", "coda", "drawn")


class ViTCIFAR100(Incremental):
    """CIFAR-100's classes in 10 or 20 tasks.

    The embedded source has a hundred classes of the picture world, from eight domains that the order mixes.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        splits: Number of tasks, 10 or 20; 0 is 10. A folder may be divided otherwise.
        order: Order of the classes: ``"pilot"`` (NumPy, seed 1993), ``"coda"`` (Python, ``coda_seed``) or
            ``"drawn"`` from the run's seed; ``""`` is ``"pilot"``.
        coda_seed: Seed of order ``"coda"``; 0 is the listed order.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in a style of
            its own; ``"instance"``: all tasks have all classes, in new pictures.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 5, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="ViT-CIFAR100-CIL-v0",
        title="Class-incremental CIFAR-100 with a vision transformer",
        paper="arXiv:2403.18886",
        kind="class-incremental",
        modality="image",
        description=(
            "A hundred classes are learned in 10 or 20 tasks. After each, all classes learned so far are asked "
            "together, and no question says which task it is from."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(("embedded pictures", "Apache-2.0, drawn by the package"), ("hub", "not stated")),
        tags=("domain-incremental", "instance-incremental", "task-free", "online", "blurred-boundary"),
        hub=("cifar100",),
        hub_backbone="timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
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
                class_source("cifar100", source, backbone, "vit"),
                allowed=(10, 20),
                orders=PILOT_ORDERS,
                splits=splits,
                order=order,
                coda_seed=coda_seed,
                shift=shift,
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=32,
            passes=5,
            probe_every=probe_every,
            prequential=prequential,
        )


class ViTImageNetR(Incremental):
    """ImageNet-R's 200 classes in 5, 10 or 20 tasks: things in other renditions than photographs.

    The embedded source has a hundred classes, each picture in a style of its own: sketched, posterised, inverted,
    as a mosaic or grey (:mod:`clgym.worlds.styles`). The hub's mirror has one split, so four fifths of every class
    are drawn to train on; the published list of 24,000/6,000 files is another split of that size.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        splits: Number of tasks, 5, 10 or 20; 0 is 10. A folder may be divided otherwise.
        order: Order of the classes: ``"pilot"`` (NumPy, seed 1993), ``"coda"`` (Python, ``coda_seed``) or
            ``"drawn"`` from the run's seed; ``""`` is ``"pilot"``.
        coda_seed: Seed of order ``"coda"``; 0 is the listed order.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in a style of
            its own; ``"instance"``: all tasks have all classes, in new pictures.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 20, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="ViT-ImageNetR-CIL-v0",
        title="Class-incremental ImageNet-R with a vision transformer",
        paper="arXiv:2403.18886",
        kind="class-incremental",
        modality="image",
        description=(
            "Renditions of 200 classes (100 embedded) are learned in 5, 10 or 20 tasks. After each, all classes "
            "learned so far are asked together, and no question says which task it is from."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(("embedded pictures", "Apache-2.0, drawn by the package"), ("hub", "MIT")),
        tags=("domain-incremental", "instance-incremental", "task-free", "online", "blurred-boundary"),
        hub=("imagenet_r",),
        hub_backbone="timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
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
                class_source("imagenet_r", source, backbone, "vit"),
                allowed=(10, 5, 20),
                orders=PILOT_ORDERS,
                splits=splits,
                order=order,
                coda_seed=coda_seed,
                shift=shift,
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=32,
            passes=20,
            probe_every=probe_every,
            prequential=prequential,
        )


class ViTImageNetA(Incremental):
    """ImageNet-A's 200 classes in 20 tasks: photographs that models get wrong.

    Classes come in the listed order and are never shuffled, as in PILOT. The embedded source has a hundred classes
    that are hard to see: small, in clutter, partly covered, of low contrast (:mod:`clgym.worlds.styles`). The hub's
    mirror has one split, so four fifths of every class are drawn to train on.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        splits: Number of tasks, 20; 0 is 20. A folder may be divided otherwise.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in a style of
            its own; ``"instance"``: all tasks have all classes, in new pictures.
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 20, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="ViT-ImageNetA-CIL-v0",
        title="Class-incremental ImageNet-A with a vision transformer",
        paper="arXiv:2403.18886",
        kind="class-incremental",
        modality="image",
        description=(
            "Hard pictures of 200 classes (100 embedded) are learned in 20 tasks, in the listed order. After each, all "
            "classes learned so far are asked together, and no question says which task it is from."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(("embedded pictures", "Apache-2.0, drawn by the package"), ("hub", "MIT")),
        tags=("domain-incremental", "instance-incremental", "task-free", "online", "blurred-boundary"),
        hub=("imagenet_a",),
        hub_backbone="timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        splits: int = 0,
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
                class_source("imagenet_a", source, backbone, "vit"),
                allowed=(20,),
                orders=("listed",),
                splits=splits,
                shift=shift,
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=32,
            passes=20,
            probe_every=probe_every,
            prequential=prequential,
        )


class ViTVTAB(Incremental):
    """Five domains of ten classes each, one a task, in a fixed order.

    The order is remote sensing, textures, pets, satellite and flowers: RESISC45, DTD, Pets, EuroSAT and Flowers-102
    (hub), the first ten classes of each, as PILOT's choice is not published; numbers are not comparable with
    printed ones. It is not the VTAB of 19 tasks. The embedded source has satellite ground, textures, pets, scenes and
    flowers. Order and tasks are never shuffled; a folder with train and test data right in it is divided in five.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: labels or log-probabilities over the classes learned so far.


    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder: to be divided, with train and test data right in it, or with
            one sub-folder per task (see :mod:`clgym.folder`).
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes and no event tells the task.
        passes: Passes over each task's training data; 0 is 20, or 8 on the embedded model; 1 is the online setting,
            in batches of 10.
        blur: Share of each task's training samples that is exchanged for other tasks'.
        tasks: Play the first so many tasks only; 0 plays all.
        steps: ``Train`` events per task in place of passes; 0 leaves it to them.
        backbone: Pre-trained model for a folder, ``"embedded/tiny-vit"`` or a timm name such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``; the other sources have their own.
        probe_every: Ask about the tasks met so far every so many ``Train`` events; 0 is never.
        prequential: Ask about every training batch before it is shown.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="ViT-VTAB-CIL-v0",
        title="Cross-domain class-incremental VTAB with a vision transformer",
        paper="arXiv:2403.18886",
        kind="class-incremental",
        modality="image",
        description=(
            "Five domains of ten classes (remote sensing, textures, pets, satellite, flowers) are learned one after "
            "another. After each, all classes learned so far are asked together, and no question says its domain."
        ),
        metrics=("average_incremental_accuracy", "last", "forgetting", "backward_transfer", "learning_accuracy"),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("hub", "each data set's own"),
        ),
        tags=("task-free", "online", "blurred-boundary"),
        hub=("resisc45", "dtd", "oxford_pet", "eurosat", "flowers"),
        hub_backbone="timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
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
                class_source("vtab", source, backbone, "vit"),
                allowed=(5,),
                orders=("listed",),
                tasks=tasks,
            ),
            Variant(boundaries, passes, blur, steps),
            batch_size=32,
            passes=20,
            probe_every=probe_every,
            prequential=prequential,
        )
