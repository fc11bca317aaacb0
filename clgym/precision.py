"""Average precision of detections as COCO defines it, by ``pycocotools``."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.errors import SettingError

MOST = 100  # detections of a picture that count, COCO's maxDets
SIDE = 1000.0  # pixels that shares of a picture are turned into; large enough that no area is below COCO's smallest


@dataclass(frozen=True, eq=False)
class Precision:
    """Average precision of every class.

    Attributes:
        AP: float64 ``(C,)`` in [0, 1], averaged over IoU thresholds 0.50, 0.55, ... 0.95; NaN for a class without an
            object.
        AP50: The same at a threshold of 0.50.
    """

    AP: npt.NDArray[np.float64]
    AP50: npt.NDArray[np.float64]


def average_precision(detections: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]) -> Precision:
    """Score answers against the objects that are there, class by class; see :func:`precision_of`.

    Args:
        detections: float ``(N, Q, 4 + C)``: centre x, centre y, width and height as shares of the picture, then scores.
        boxes: float ``(N, M, 5)``: class, or -1 in rows without an object; then a box as above.

    Raises:
        SettingError: Shapes do not fit, or a class is beyond the scores.
    """
    classes = detections.shape[-1] - 4
    shaped = detections.ndim == boxes.ndim == 3 and boxes.shape[-1] == 5 and len(detections) == len(boxes)
    if not shaped or classes < 1 or (boxes[..., 0] >= classes).any():
        raise SettingError(
            f"Expected detections (N, Q, 4 + C) and boxes (N, M, 5) of classes below C; got {detections.shape} and "
            f"{boxes.shape}. Give the answers and the objects of the same pictures."
        )
    return precision_of(strongest(detections), boxes, classes)


def strongest(detections: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the detections that count, ``(n, 7)``: number of the picture, class, score, and the box.

    Every slot of ``(N, Q, 4 + C)`` is a detection of every class with that class's score; of each picture the
    :data:`MOST` with the highest scores count. They lie picture by picture, from the highest score on.
    """
    pictures, _, width = detections.shape
    classes = width - 4
    scores = detections[..., 4:].reshape(pictures, -1)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :MOST]
    image = np.repeat(np.arange(pictures), top.shape[1])
    slot, of = np.divmod(top.ravel(), classes)
    return np.column_stack([image, of, scores[image, top.ravel()], detections[image, slot, :4]]).astype(np.float64)


def precision_of(rows: npt.NDArray[np.float64], boxes: npt.NDArray[np.float32], classes: int) -> Precision:
    """Score detections against the objects that are there, class by class.

    Precision is interpolated at 101 levels of recall. Sizes of objects play no part.

    Args:
        rows: Detections, see :func:`strongest`.
        boxes: float ``(N, M, 5)``: class, or -1 in rows without an object; then a box.
        classes: Number of classes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = np.full((2, classes), np.nan)
    objects = _objects(boxes)
    if objects:
        there = sorted({int(row["category_id"]) for row in objects})  # others have no precision, whatever is seen
        rows = rows[np.isin(rows[:, 1], there)]
        found[:, there] = 0.0
    if objects and len(rows):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n} for n in range(len(boxes))],
            "categories": [{"id": c} for c in there],
            "annotations": objects,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
            truth.createIndex()
            scorer = COCOeval(truth, truth.loadRes(_results(rows)), "bbox")
            scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
            scorer.params.maxDets = [MOST]
            scorer.evaluate()
            scorer.accumulate()
        precision = scorer.eval["precision"][:, :, :, 0, 0]  # (thresholds, levels, classes)
        found[:, there] = precision.mean(axis=(0, 1)), precision[0].mean(axis=0)
    return Precision(found[0], found[1])


def share_found(detections: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]) -> float:
    """Return how many of the objects are found, the mean over pictures with one, in [0, 1]; 0 if none has.

    In a picture of n objects the n strongest detections count, and an object is found if one of them has its class and
    an IoU of at least 0.5 with it. This is what a batch is worth while a stream goes on; it costs a thousandth of the
    average precision.

    Args:
        detections: float ``(N, Q, 4 + C)``, as in :func:`average_precision`.
        boxes: float ``(N, M, 5)``, as there.

    >>> there = np.array([[[1, 0.5, 0.5, 0.2, 0.2], [0, 0.1, 0.1, 0.2, 0.2]]], np.float32)
    >>> seen = np.array([[[0.5, 0.5, 0.2, 0.2, 0.1, 0.8], [0.8, 0.8, 0.2, 0.2, 0.7, 0.0]]], np.float32)
    >>> share_found(seen, there)
    0.5
    """
    pictures, most = boxes.shape[:2]
    rows = strongest(detections).reshape(pictures, -1, 7)[:, :most]
    there = boxes[..., 0] >= 0
    counts = there.sum(axis=1)
    counted = np.arange(rows.shape[1]) < counts[:, None]
    same = (rows[:, None, :, 1] == boxes[:, :, None, 0]) & counted[:, None]
    hit = (same & (_overlap(boxes[:, :, None, 1:], rows[:, None, :, 3:]) >= 0.5)).any(axis=2) & there
    some = counts > 0
    return float((hit.sum(axis=1)[some] / counts[some]).mean()) if some.any() else 0.0


def _overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the IoU of boxes of centre and size; 0 where both are without an area."""
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    both = (high - low).clip(0).prod(axis=-1)
    either = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - both
    out: npt.NDArray[Any] = both / np.where(either > 0, either, 1)
    return out


def _corner(box: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Turn boxes ``(..., 4)`` of centre and size in shares into corner and size in pixels."""
    box = box.astype(np.float64) * SIDE
    return np.concatenate([box[..., :2] - box[..., 2:] / 2, box[..., 2:]], axis=-1)


def _objects(boxes: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for image, row in zip(*np.nonzero(boxes[..., 0] >= 0), strict=True):
        corner = _corner(boxes[image, row, 1:])
        out.append(
            {
                "id": len(out) + 1,  # 0 would read as unmatched
                "image_id": int(image),
                "category_id": int(boxes[image, row, 0]),
                "bbox": corner.tolist(),
                "area": float(corner[2] * corner[3]),
                "iscrowd": 0,
            }
        )
    return out


def _results(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return detections as the library takes them, ``(n, 7)``: image, corner and size, score, class."""
    return np.column_stack([rows[:, 0], _corner(rows[:, 3:]), rows[:, 2], rows[:, 1]])
