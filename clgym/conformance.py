"""The conformance pack: accuracy matrices with the value of every metric, to which any library can be held.

The data lie in ``conformance.json``; how each value was obtained stands beside it. ``check`` compares an
implementation with the pack, and ``Pack.peers`` says which number other libraries mean by the same word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from clgym.formulary import Matrix, Probes
from clgym.metrics import scores


@dataclass(frozen=True, eq=False)
class Case:
    """One accuracy matrix and what follows from it.

    Attributes:
        id: Name of the case.
        description: What it shows.
        R: Accuracy matrix, ``(T+1, T)``, row 0 before any training; NaN where not measured.
        inputs: The other arguments of ``clgym.metrics.scores``.
        expected: Metric id to value; NaN where undefined. Empty for a case that must raise an error.
        obtained: Where the expected values come from.
        tolerance: Largest allowed difference.
    """

    id: str
    description: str
    R: Matrix
    inputs: Mapping[str, Any]
    expected: Mapping[str, float]
    obtained: str
    tolerance: float


@dataclass(frozen=True)
class Word:
    """What one library calls by one of the field's words.

    Attributes:
        library: The library.
        word: Its name for the number.
        value: What its own code gives on the case named in ``Pack.peers_case``, to four decimals.
        equals: The metric here that is the same number; None if there is none.
        remark: How it differs.
    """

    library: str
    word: str
    value: float
    equals: str | None
    remark: str


@dataclass(frozen=True)
class Pack:
    """Everything in ``conformance.json``.

    Attributes:
        about: How to read the pack, and how the values were obtained.
        cases: Matrices with expected values.
        rejected: Inputs that must raise an error.
        peers_case: Id of the case that the values in ``peers`` belong to.
        peers: What other libraries call by the same words.
    """

    about: str
    cases: tuple[Case, ...]
    rejected: tuple[Case, ...]
    peers_case: str
    peers: tuple[Word, ...]


@dataclass(frozen=True)
class Failure:
    """One number that is not as expected.

    Attributes:
        case: Id of the case.
        metric: Id of the metric; ``"*"`` where the case as a whole should have raised an error.
        expected: What the pack says.
        got: What was computed, or the error that was raised instead.
    """

    case: str
    metric: str
    expected: str
    got: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.case}: expected {self.metric} = {self.expected}; got {self.got}."


def load() -> Pack:
    """Read the pack.

    >>> pack = load()
    >>> pack.cases[0].id, pack.cases[0].expected["average_accuracy"]
    ('four_tasks', 0.7375)
    """
    text = resources.files("clgym").joinpath("conformance.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    peers = raw["peers"]
    return Pack(
        about=raw["about"],
        cases=tuple(_case(entry, raw["tolerance"]) for entry in raw["cases"]),
        rejected=tuple(_case(entry, raw["tolerance"]) for entry in raw["rejected"]),
        peers_case=peers["case"],
        peers=tuple(Word(**entry) for entry in peers["words"]),
    )


def ours(case: Case) -> dict[str, float]:
    """Compute a case with ``clgym.metrics.scores``.

    Raises:
        SettingError: The case has a wrong input, as those under ``Pack.rejected`` have.
    """
    inputs = dict(case.inputs)
    if "probes" in inputs:
        log = inputs["probes"]
        accuracy = np.array(log["accuracy"], dtype=np.float64).reshape(len(log["step"]), case.R.shape[1])
        inputs["probes"] = Probes(log["task_learning"], log["step"], accuracy)
    return scores(case.R, **inputs)


def check(
    compute: Callable[[Case], Mapping[str, float]] = ours, *, only: Collection[str] | None = None
) -> list[Failure]:
    """Compare an implementation with the pack.

    Args:
        compute: Takes a case, returns metric id to value; raises any error for inputs that are wrong.
        only: Metric ids to hold it to; without it, all of the pack. Naming ids leaves out ``Pack.rejected``.

    Returns:
        One entry per number that is missing, differs, or should have been NaN; empty when all conform.

    >>> check()
    []
    >>> print(check(lambda case: {"last": 0.5}, only=["last"])[0])
    four_tasks: expected last = 0.7375; got 0.5.
    """
    pack = load()
    failures = []
    for case in pack.cases:
        wanted = {id: value for id, value in case.expected.items() if only is None or id in only}
        failures += _compare(compute, case, wanted)
    for case in pack.rejected if only is None else ():
        try:
            compute(case)
        except Exception:
            continue
        failures.append(Failure(case.id, "*", "an error", "values"))
    return failures


def _compare(compute: Callable[[Case], Mapping[str, float]], case: Case, wanted: Mapping[str, float]) -> list[Failure]:
    if not wanted:
        return []
    try:
        values = compute(case)
    except Exception as error:
        return [Failure(case.id, id, repr(value), repr(error)) for id, value in wanted.items()]
    failures = []
    for id, value in wanted.items():
        if id not in values:
            failures.append(Failure(case.id, id, repr(value), "nothing"))
        elif not _same(value, float(values[id]), case.tolerance):
            failures.append(Failure(case.id, id, repr(value), repr(float(values[id]))))
    return failures


def _same(expected: float, got: float, tolerance: float) -> bool:
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    return abs(expected - got) <= tolerance


def _case(entry: dict[str, Any], tolerance: float) -> Case:
    return Case(
        id=entry["id"],
        description=entry["description"],
        R=np.array(entry["R"], dtype=np.float64),
        inputs=entry["inputs"],
        expected={id: math.nan if value is None else value for id, value in entry.get("expected", {}).items()},
        obtained=entry.get("obtained", ""),
        tolerance=entry.get("tolerance", tolerance),
    )
