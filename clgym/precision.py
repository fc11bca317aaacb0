"""Average precision of detections as COCO defines it, by ``pycocotools``."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.errors import SettingError

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
    """Score detections against the objects that are there, class by class.

    Every slot is a detection of every class, with that class's score; of a picture and a class the 100 highest count
    (COCO's ``maxDets``). Precision is interpolated at 101 levels of recall. Sizes of objects play no part.

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
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = np.full((2, classes), np.nan)
    objects = _objects(boxes)
    if objects and detections.size:
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n} for n in range(len(boxes))],
            "categories": [{"id": c} for c in range(classes)],
            "annotations": objects,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
            truth.createIndex()
            scorer = COCOeval(truth, truth.loadRes(_rows(detections)), "bbox")
            scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
            scorer.params.maxDets = [100]
            scorer.evaluate()
            scorer.accumulate()
        precision = scorer.eval["precision"][:, :, :, 0, 0]  # (thresholds, levels, classes); -1: no object
        found[:] = precision.mean(axis=(0, 1)), precision[0].mean(axis=0)
        found[found < 0] = np.nan
    return Precision(found[0], found[1])


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


def _rows(detections: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return a row per picture, slot and class, ``(N, 7)``: image, corner and size, score, class."""
    pictures, slots, width = detections.shape
    classes = width - 4
    image, _, of = np.meshgrid(np.arange(pictures), np.arange(slots), np.arange(classes), indexing="ij")
    corner = np.repeat(_corner(detections[..., :4])[:, :, None], classes, axis=2).reshape(-1, 4)
    return np.column_stack([image.ravel(), corner, detections[..., 4:].reshape(-1), of.ravel()])
