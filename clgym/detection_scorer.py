"""Keeps the objects in pictures, and what was made of detections; nothing here is shown to an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.errors import RecordError
from clgym.events import Array, Boxes, IntArray
from clgym.metrics import scores
from clgym.plan import Point
from clgym.precision import Precision, precision_of, share_found, strongest
from clgym.scorer import Report

COLUMNS = {
    "point": np.int32,
    "task": np.int16,
    "question": np.int32,
    "class": np.int16,
    "score": np.float32,
    "x": np.float32,
    "y": np.float32,
    "width": np.float32,
    "height": np.float32,
}


class DetectionScorer:
    """Takes detections as :class:`clgym.scorer.Scorer` takes labels; an accuracy is the mAP over classes with objects.

    Of every picture the 100 strongest detections are kept, a row each in ``predictions.parquet``.

    Args:
        tasks: Task names.
        truths: Per task, the objects in its questions, float32 ``(n_j, M, 5)``, with indices of candidates.
        points: The stream's evaluation points.
        tests: Per task, how many of its questions are about test data and count in ``R``, the first.
    """

    needs = tuple(COLUMNS)
    full = None

    def __init__(
        self, tasks: Sequence[str], truths: Sequence[Boxes], points: Sequence[Point], *, tests: Sequence[int]
    ) -> None:
        """Start with nothing asked."""
        self.sizes = np.array(tests)
        self.tasks, self.points = tuple(tasks), tuple(points)
        self.truths = tuple(truths)
        self.classes = 1 + int(max((boxes[..., 0].max(initial=-1) for boxes in truths), default=-1))
        self._rows: list[dict[str, Array]] = []
        self._online: list[float] = []

    def add(self, point: int, task: int, questions: IntArray, answer: Array) -> float:
        """Keep the answers to questions of a task; return :func:`clgym.precision.share_found`, in [0, 1].

        Args:
            point: Evaluation point.
            task: Task asked about.
            questions: Numbers of the questions, int64 ``(B,)``.
            answer: Detections ``(B, Q, 4 + C)``.
        """
        rows = strongest(answer)
        values = (np.full(len(rows), point), np.full(len(rows), task), questions[rows[:, 0].astype(np.int64)])
        columns = (*values, *rows.T[1:])
        self._rows.append(
            {name: column.astype(kind) for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)}
        )
        return share_found(answer, self.truths[task][questions])

    def add_online(self, answer: Array, truth: Any) -> float:
        """Score a batch that is about to be trained on; return :func:`clgym.precision.share_found`."""
        self._online.append(share_found(answer, truth))
        return self._online[-1]

    def predictions(self) -> dict[str, Array]:
        """Return the log so far, one array per column of ``predictions.parquet``."""
        if not self._rows:
            return {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        self._rows = [{name: np.concatenate([row[name] for row in self._rows]) for name in COLUMNS}]
        return self._rows[0]

    def precision(self, point: int, task: int) -> Precision | None:
        """Return the precision of every class on a task's test data at a point; ``None`` if they were not all asked."""
        log, size = self.predictions(), int(self.sizes[task])
        mine = (log["point"] == point) & (log["task"] == task) & (log["question"] < size)
        if len(np.unique(log["question"][mine])) < size:
            return None
        rows = np.column_stack([log[name][mine] for name in ("question", *list(COLUMNS)[3:])]).astype(np.float64)
        return precision_of(rows, self.truths[task][:size], self.classes)

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return ``R``, float64 ``(T + 1, T)``: mAP at task boundaries, NaN where not all was asked."""
        at = [number for number, point in enumerate(self.points) if point.is_row]
        cells = [[self.precision(number, task) for task in range(len(self.tasks))] for number in at]
        return np.array([[np.nan if cell is None else _mean(cell) for cell in row] for row in cells])

    def report(self, **references: Any) -> Report:
        """Return the matrix and all metrics it allows; ``references`` as in :func:`clgym.metrics.scores`."""
        R = self.matrix()
        extra = {"prequential": np.array(self._online) if self._online else None, "sizes": self.sizes}
        return Report(self.tasks, R, scores(R, **{k: v for k, v in {**extra, **references}.items() if v is not None}))

    def rescore(self, predictions: Mapping[str, Array], **references: Any) -> Report:
        """Return the report of a log of detections; nothing that was counted here is used.

        ``references`` are as in :func:`clgym.metrics.scores`.

        Raises:
            RecordError: A row names a point, task, question or class that the stream does not have.
        """
        return self.reading(predictions).report(**references)

    def reading(self, predictions: Mapping[str, Array]) -> DetectionScorer:
        """Return a scorer of the same questions that has the answers of a log.

        Raises:
            RecordError: A row names a point, task, question or class that the stream does not have.
        """
        counts = np.array([len(boxes) for boxes in self.truths])
        point, task, question, of = (np.asarray(predictions[name]) for name in list(COLUMNS)[:4])
        known = (0 <= point) & (point < len(self.points)) & (0 <= task) & (task < len(counts)) & (0 <= question)
        known[known] &= question[known] < counts[task[known]]
        known &= of >= 0
        if not known.all():
            row = int((~known).argmax())
            raise RecordError(
                f"Expected points below {len(self.points)}, tasks below {len(counts)}, their questions and classes; "
                f"got point {point[row]}, task {task[row]}, question {question[row]}, class {of[row]} in row {row}. "
                "Score with the run's settings."
            )
        again = DetectionScorer(self.tasks, self.truths, self.points, tests=self.sizes.tolist())
        again._rows = [{name: np.asarray(predictions[name]) for name in COLUMNS}]
        return again

    def get_state(self) -> dict[str, Array]:
        """Return what has been answered so far."""
        return {
            "online": np.array(self._online),
            **{name: column.copy() for name, column in self.predictions().items()},
        }

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Continue from what :meth:`get_state` returned."""
        self._online = [float(value) for value in state["online"]]
        self._rows = [{name: np.asarray(state[name]) for name in COLUMNS}]


def _mean(precision: Precision) -> float:
    """Return the mean over classes that are there, NaN if none is."""
    there = ~np.isnan(precision.AP)
    return float(precision.AP[there].mean()) if there.any() else float("nan")
