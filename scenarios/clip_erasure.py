"""Learning and forgetting on request, interleaved, with CLIP: classes, samples, domains, tasks or users must go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clgym.demands import halves, joined, mislabelled, of_classes, of_samples, of_task, of_users, owned, spread
from clgym.errors import SettingError
from clgym.events import IntArray
from clgym.increments import dealt
from clgym.labels import distinct
from clgym.scenario import Request, Scenario, ScenarioSpec, Task, Teaching
from clgym.sources import TINY_CLIP, image_source
from clgym.variants import not_negative

# Satellite ground, dishes, flowers and cars, or what stands for them, by position in MTIL's order I: three domains
# that the pre-trained model hardly knows and one that it does.
DOMAINS = (4, 6, 5, 9)
STYLES = ("photo", "sketch", "posterised", "inverted")
CHOICES = {
    "goal": ("counterfactual", "removal"),
    "forget": ("none", "few", "full"),
    "retain": ("none", "few", "own", "full"),
    "labels": ("task", "union"),
}
KINDS = ("class", "sample", "domain", "task", "user", "relearn", "temporary", "batch", "conflict")
AMOUNT = {"sample": 100, "user": 25, "task": 1, "domain": 1, "temporary": 1}
USERS, SKEW = 100, 0.3


class CLIPErasure(Scenario):
    """Four domains learned in turn, with requests to forget in between.

    Every question offers the classes of its domain. What may be answered never changes, so that an erased class is not
    given away by its absence. The target is the same agent on the counterfactual stream
    (``env.unwrapped.counterfactual()``), which on CLIP keeps what the pre-trained model knows of an erased class.

    Kinds of stream:

    * ``"class"``: request ``i`` is for ``amount`` classes of domain ``i``, drawn by the seed.
    * ``"sample"``: for ``amount`` training samples, drawn over all domains learned until then; with ``noise`` some
      samples of every domain carry a wrong label, and half of those that go are of these.
    * ``"task"``: for a whole domain.
    * ``"domain"``: the tasks have all classes, each task in another style of :mod:`clgym.worlds.styles`; a whole style
      must go, its classes stay.
    * ``"user"``: all samples belong to 100 users with tastes of their own, who have some in every domain; ``amount`` of
      them leave.
    * ``"relearn"``: as ``"class"``; at the end the classes of the request are welcome again, and a second half of
      their domain comes, held back before.
    * ``"temporary"``: the first two domains are announced as temporary; one must go, one may stay.
    * ``"batch"``: all requests for classes have one deadline, the end of the domain after the last request.
    * ``"conflict"``: a class goes, is asked for again, with samples that never were and with samples that are gone
      already; it is learned anew from new samples, and goes again.

    Observation: uint8 images ``(B, H, W, 3)``; H = W = 32 (embedded) or the backbone's size (hub, folder).
    Answers: log-probabilities over the candidates.

    Version history:
        v0: First.

    Args:
        source: ``"embedded"``, ``"hub"``, or a folder with one sub-folder per domain (see :mod:`clgym.folder`), of
            which the first four are used.
        kind: Kind of stream, see above.
        amount: Classes, samples or users of a request; 0 is 2 classes, 100 samples or 25 users.
        requests: Number of requests; 0 is 2, or 1 where the kind has one.
        lag: Domains learned between the one that a request concerns and the request; 0 asks at once.
        goal: ``"counterfactual"``, or ``"removal"``, whose results stand in a table of their own.
        forget: What of the samples to forget may be read: ``"none"``, ``"few"`` or ``"full"``.
        retain: What of the others may be read: ``"none"``, ``"few"``, ``"own"`` (what the agent keeps) or ``"full"``.
        shots: Samples per class of ``"few"``.
        missing: Of requests for classes: number of retained classes of the domain of which nothing may be read.
        erase_steps: ``Erase`` events per request; 0 takes the source's 100 or, on the tiny CLIP, 40.
        noise: Of ``"sample"``: share of all training samples with a wrong label.
        steps: ``Train`` events per domain; 0 takes the source's constant, 500 or, on the tiny CLIP, 60.
        labels: ``"task"``: a question offers the classes of its domain; ``"union"``: those of all domains.
        backbone: Pre-trained model for a folder; the other sources have their own.

    Raises:
        SettingError: A setting is out of range.
        SourceError: The folder is malformed, or its domains share class names.
        SourceMissingError: The hub's data are not on this machine.
    """

    spec = ScenarioSpec(
        id="CLIP-Erasure-v0",
        title="Learning and forgetting on request with CLIP",
        paper="arXiv:2203.12817",
        kind="task-incremental",
        modality="image",
        description=(
            "Four image domains are learned one after another. In between, classes, samples, domains, tasks or users "
            "must be forgotten, as if they had never come; some are learned again."
        ),
        metrics=("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer"),
        licences=(
            ("embedded pictures", "Apache-2.0, drawn by the package"),
            ("hub", "each data set's own; see clgym.hub_sets"),
        ),
        hub=("eurosat", "food", "flowers", "stanford_cars"),
        hub_backbone="ViT-B-16/openai",
    )

    def __init__(
        self,
        *,
        source: str = "embedded",
        kind: str = "class",
        amount: int = 0,
        requests: int = 0,
        lag: int = 1,
        goal: str = "counterfactual",
        forget: str = "full",
        retain: str = "few",
        shots: int = 4,
        missing: int = 0,
        erase_steps: int = 0,
        noise: float = 0.0,
        steps: int = 0,
        labels: str = "task",
        backbone: str = "",
    ) -> None:
        """Check the settings; a folder is read here, so that its faults show at once."""
        not_negative(
            amount=amount,
            requests=requests,
            lag=lag,
            shots=shots,
            missing=missing,
            erase_steps=erase_steps,
            steps=steps,
        )
        _check(noise, kind, kind=kind, goal=goal, forget=forget, retain=retain, labels=labels)
        self._kind, self._amount = kind, amount or AMOUNT.get(kind, 2)
        self._count = requests or (1 if kind in ("temporary", "relearn", "conflict") else 2)
        self._lag, self._missing, self._noise = lag, missing, noise
        domains = image_source(source, backbone)
        self._names = tuple(domains.domains[i] for i in DOMAINS) if domains.words else domains.domains[: len(DOMAINS)]
        domains.require(self._names, self.spec.id)
        self._domains = domains
        self.source, self.backbone, self.shape = domains.name, domains.backbone, (domains.size, domains.size, 3)
        real = domains.backbone != TINY_CLIP
        counts = dict(zip(domains.domains, domains.classes, strict=True))
        self.classes = sum(counts[name] for name in self._names)
        if not domains.words:
            self._load()
        how = {"goal": goal, "forget": forget, "retain": retain, "shots": shots if "few" in (forget, retain) else 0}
        self._how: dict[str, Any] = {**how, "steps": erase_steps or (100 if real else 40)}
        self.teaching = Teaching(
            batch_size=64 if real else 32,
            steps=steps or (500 if real else 60),
            labels="union" if labels == "union" else "task",
            needs_scores=True,
        )

    def _load(self) -> list[Task]:
        return distinct([self._domains.load(name) for name in self._names], self._domains.words)

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the domains in order, or the styles; ``rng`` draws wrong labels, and classes that come back."""
        loaded = self._load()
        match self._kind:
            case "sample" if self._noise:
                return [mislabelled(task, self._noise, rng) for task in loaded]
            case "domain":
                return dealt(joined(loaded, "all domains"), STYLES[: len(loaded)])
            case "temporary":
                return [replace(task, temporary=task.classes) if t < 2 else task for t, task in enumerate(loaded)]
            case "relearn" | "conflict":
                first, again = halves(loaded[0], f"{loaded[0].name} again")
                return [first, *loaded[1:], again]
        return loaded

    def _drawn(self, task: Task, rng: np.random.Generator) -> list[str]:
        """Draw the classes of a request."""
        if not self._amount + self._missing < len(task.classes):
            raise SettingError(
                f"Expected amount and missing to leave some of the {len(task.classes)} classes of {task.name}; got "
                f"{self._amount} and {self._missing}. Choose fewer."
            )
        return [task.classes[c] for c in sorted(rng.permutation(len(task.classes))[: self._amount].tolist())]

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        """Return the requests of the stream's kind."""
        last = len(tasks) - (self._kind in ("relearn", "conflict", "batch"))
        if not 0 < self._count + self._lag <= last:
            raise SettingError(
                f"Expected requests and lag to sum to at most {last} in a stream of kind {self._kind!r}; got "
                f"{self._count} and {self._lag}. Choose fewer."
            )
        if self._kind in ("relearn", "conflict"):
            return self._again(tasks, rng)
        owners = owned(tasks, USERS, SKEW, rng) if self._kind == "user" else []
        leaving = rng.permutation(USERS).tolist()
        out: list[Any] = []
        for i in range(self._count):
            how = {**self._how, "after": i + 1 + self._lag}
            match self._kind:
                case "sample":
                    rows, odd = self._samples(tasks, i, out, rng)
                    out.append(of_samples(rows, atypical=odd, **how))
                case "user":
                    users = leaving[i * self._amount : (i + 1) * self._amount]
                    out.append(of_users(owners, users, **how))
                case "task" | "domain" | "temporary":
                    notice = "temporary" if self._kind == "temporary" else "none"
                    out.append(of_task(tasks, i, shared=self._kind == "domain", notice=notice, **how))
                case _:
                    out.append(self._classes(tasks, i, rng, how))
        return out

    def _classes(self, tasks: Sequence[Task], i: int, rng: np.random.Generator, how: dict[str, Any]) -> Request:
        names = self._drawn(tasks[i], rng)
        left = [name for name in tasks[i].classes if name not in names]
        missing = tuple(left[c] for c in sorted(rng.permutation(len(left))[: self._missing].tolist()))
        delay = self._count - i if self._kind == "batch" else 0
        return of_classes(tasks, names, missing=missing, delay=delay, **how)

    def _samples(
        self, tasks: Sequence[Task], i: int, before: Sequence[Request], rng: np.random.Generator
    ) -> tuple[list[IntArray], tuple[IntArray, ...]]:
        """Draw samples of the domains learned that no request named before; with noise, half of wrong label.

        Returns:
            The rows per task, and of these the mislabelled.
        """
        gone = [np.zeros(len(task.train), bool) for task in tasks]
        for request in before:
            for t, rows in enumerate(request.train):
                gone[t][rows] = True
        right = [task.train.targets for task in self._load()]
        wrong = [task.train.targets != was for task, was in zip(tasks, right, strict=True)]
        learned = range(i + 1 + self._lag)
        half = self._amount // 2 if self._noise else 0
        none: list[IntArray] = [np.empty(0, np.int64)] * (len(tasks) - len(learned))
        odd = [*spread([~gone[t] & wrong[t] for t in learned], half, rng), *none]
        usual = [*spread([~gone[t] & ~wrong[t] for t in learned], self._amount - half, rng), *none]
        return [np.concatenate(both) for both in zip(odd, usual, strict=True)], tuple(odd) if self._noise else ()

    def _again(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        """Return the requests of a stream whose last task brings classes back."""
        names, last = tuple(self._drawn(tasks[0], rng)), len(tasks)
        none: IntArray = np.empty(0, np.int64)
        first = of_classes(tasks[:-1], names, after=1 + self._lag, **self._how)
        first = replace(first, train=(*first.train, none), test=(*first.test, none))
        welcome = Request(after=last - 1, kind="relearn", scope=names, classes=names)
        if self._kind == "relearn":
            return [first, welcome]
        how = {**self._how, "after": 1 + self._lag}
        unknown = Request(kind="sample", unknown=10, **how)
        overlap = of_samples([first.train[0][:5], *[none] * (last - 1)], **how)
        return [first, first, unknown, overlap, welcome, of_classes(tasks, names, **{**how, "after": last})]


def _check(noise: float, of: str, **chosen: str) -> None:
    """Raise unless settings in words are known ones, and noise is a share, and of samples."""
    for name, value in chosen.items():
        known = {**CHOICES, "kind": KINDS}[name]
        if value not in known:
            raise SettingError(f"Expected {name} as one of {', '.join(map(repr, known))}; got {value!r}. Choose one.")
    if not 0 <= noise < 1 or (noise and of != "sample"):
        raise SettingError(f"Expected noise in [0, 1), with kind 'sample' only; got {noise}. Leave it out.")
