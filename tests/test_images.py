import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from clgym.errors import SourceError
from clgym.folder import read_parquet
from clgym.images import (
    DRAWS,
    PILOT_VIEW,
    ArrayImages,
    EncodedImages,
    FileStore,
    View,
    centre,
    crop_box,
    data_directory,
    rgb,
    subset,
)


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind)
    return out.getvalue()


def noise(seed: int, height: int = 20, width: int = 20) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_parquet(path: Path, images: Sequence[bytes | None], labels: Sequence[int]) -> Path:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"bytes": b, "path": None} for b in images]
    table = pa.table({"image": rows, "label": labels}, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=50)
    return path


def parquet_images(path: Path, size: int, **options: Any) -> EncodedImages:
    store, labels, _ = read_parquet([path], "image", "label")
    return EncodedImages(store, labels, size, view=View(**options))


def files(tmp_path: Path, count: int, height: int = 20, width: int = 20) -> FileStore:
    paths = []
    for i in range(count):
        path = tmp_path / f"{i}.png"
        path.write_bytes(encoded(noise(i, height, width)))
        paths.append(path)
    return FileStore(tuple(paths))


def test_lossless_images_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(noise(i)) for i in range(5)], [0, 1, 0, 1, 1])
    data = parquet_images(path, 20)
    assert data.decodes
    assert len(data) == 5
    assert data.targets.dtype == np.int64
    assert data.targets.tolist() == [0, 1, 0, 1, 1]
    out = data.batch(np.array([3, 0, 3]))
    assert out.dtype == np.uint8
    assert np.array_equal(out, np.stack([noise(3), noise(0), noise(3)]))
    assert data.batch(np.array([], dtype=np.int64)).shape == (0, 20, 20, 3)


def test_rows_choose_and_order(tmp_path: Path) -> None:
    data = EncodedImages(files(tmp_path, 4), [7, 8], 20, rows=[3, 1])
    assert np.array_equal(data.batch(np.array([0, 1])), np.stack([noise(3), noise(1)]))


@pytest.mark.parametrize("resize", [1.0, 256 / 224])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (17, 90), (8, 5)])
def test_the_test_view_is_torchvisions(tmp_path: Path, height: int, width: int, resize: float) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    view = transforms.Compose(
        [
            transforms.Resize(round(56 * resize), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(56),
        ]
    )
    image = Image.fromarray(noise(0, height, width))
    assert np.array_equal(np.asarray(centre(image, 56, resize)), np.asarray(view(image)))


def test_crop_boxes_lie_within_and_keep_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    areas, aspects = [], []
    for _ in range(2000):
        left, top, right, bottom = crop_box(400, 380, rng.random(DRAWS - 1))
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 380
        areas.append((right - left) * (bottom - top) / (400 * 380))
        aspects.append((right - left) / (bottom - top))
    assert 0.89 < min(areas) < 0.91
    assert 0.75 <= min(aspects)
    assert max(aspects) <= 4 / 3
    assert len(set(areas)) > 100


def test_crop_box_worked_by_hand() -> None:
    draws = np.zeros(DRAWS - 1)
    draws[:2] = 0.0, 0.5  # 0.9 of the area at aspect 1 of 100 x 100: a side of sqrt(9000) = 94.87
    draws[-2:] = 0.5, 0.999
    assert crop_box(100, 100, draws) == (3, 5, 98, 100)
    # PILOT's 0.05 of it: a side of sqrt(500) = 22.36, at (0.5 * 79, 0.999 * 79).
    assert crop_box(100, 100, draws, PILOT_VIEW.least) == (39, 78, 61, 100)


def test_pilots_view_is_its_released_transform() -> None:
    assert (PILOT_VIEW.least, PILOT_VIEW.flip, round(224 * PILOT_VIEW.resize)) == (0.05, True, 256)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(300, 100, (83, 0, 216, 100)), (100, 300, (0, 83, 100, 216)), (100, 100, (0, 0, 100, 100))],
)
def test_crop_box_falls_back_to_the_centre(width: int, height: int, box: tuple[int, ...]) -> None:
    draws = np.ones(DRAWS - 1)  # the whole area at aspect 4/3 fits none of these
    assert crop_box(width, height, draws) == box


def test_training_views_come_from_the_generator_alone(tmp_path: Path) -> None:
    data = EncodedImages(files(tmp_path, 3, 30, 40), [0, 0, 0], 24)
    index = np.array([0, 1, 2])
    first = data.batch(index, np.random.default_rng(1))
    assert np.array_equal(first, data.batch(index, np.random.default_rng(1)))
    assert not np.array_equal(first, data.batch(index, np.random.default_rng(2)))
    assert not np.array_equal(first, data.batch(index))


def test_flipping_is_an_option(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], (25, 25, 3)).copy()
    (tmp_path / "ramp.png").write_bytes(encoded(ramp))
    store = FileStore((tmp_path / "ramp.png",))
    index, right = np.zeros(64, dtype=np.int64), []
    for flip in (False, True):
        out = EncodedImages(store, [0], 25, view=View(flip=flip)).batch(index, np.random.default_rng(0)).astype(int)
        right.append(np.sum(out[:, :, -1].mean((1, 2)) > out[:, :, 0].mean((1, 2))))
    assert right[0] == 64
    assert 16 < right[1] < 48


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(noise(i), "JPEG") for i in range(40)], [0, 1] * 20)
    data = parquet_images(path, 16)

    def read(i: int) -> Any:
        return data.batch(np.arange(i, i + 8), np.random.default_rng(i))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, range(32)))
    assert all(np.array_equal(a, read(i)) for i, a in enumerate(together))


def test_grey_palette_and_one_bit_become_rgb() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(np.asarray(rgb(Image.fromarray(grey)))[..., 1], grey)
    palette = Image.fromarray(noise(0, 8, 8)).quantize(4)
    assert np.array_equal(np.asarray(rgb(palette)), np.asarray(palette.convert("RGB")))
    assert np.asarray(rgb(Image.fromarray(grey > 20))).max() == 255


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_not_what_hides_below(kind: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 10, 10, 255))
    image = Image.open(io.BytesIO(encoded(image.convert(kind))))
    out = np.asarray(rgb(image))
    assert out[0, 0].max() < 20
    assert out[3, 3].tolist() == [255, 255, 255]


def test_half_transparent_is_mixed_with_white() -> None:
    out = np.asarray(rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert abs(int(out[0, 0, 0]) - 127) <= 1


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    out = np.asarray(rgb(Image.open(io.BytesIO(encoded(image, "JPEG")))))
    assert out.shape == (8, 8, 3)
    assert out[4, 4, 0] > 200 > 60 > out[4, 4, 1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, 0)
    path = write_parquet(tmp_path / "x.parquet", [encoded(deep, kind)], [0])
    out = parquet_images(path, 4).batch(np.array([0]))
    assert out[0, 0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_floats_are_taken_to_lie_below_256() -> None:
    image = Image.fromarray(np.array([[-3.0, 200.0, 300.0]], dtype=np.float32))
    assert np.asarray(rgb(image))[0, :, 0].tolist() == [0, 200, 255]


def test_an_unreadable_file_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    data = EncodedImages(FileStore((tmp_path / "broken.jpg",)), [0], 8)
    for read in (lambda: data.batch(np.array([0])), lambda: data.check(10)):
        with pytest.raises(SourceError, match=r"Expected a readable image at .*broken\.jpg; got Unid.* Replace"):
            read()


def test_a_truncated_image_is_named_by_file_and_row(tmp_path: Path) -> None:
    whole = encoded(noise(0, 64, 64))
    broken = [whole, whole[: len(whole) // 2], b"", struct.pack("<I", 7)]
    data = parquet_images(write_parquet(tmp_path / "x.parquet", broken, [0, 1, 0, 1]), 8)
    data.batch(np.array([0]))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for row in (1, 2, 3):
        with pytest.raises(SourceError, match=rf"x\.parquet, row {row}; got .*remove it and its label"):
            data.batch(np.array([row]))


def test_a_row_without_bytes_is_named(tmp_path: Path) -> None:
    data = parquet_images(write_parquet(tmp_path / "x.parquet", [None], [0]), 8)
    with pytest.raises(SourceError, match=r"x\.parquet, row 0; got ValueError: the row holds no image bytes"):
        data.batch(np.array([0]))


def test_the_row_is_that_of_its_own_file(tmp_path: Path) -> None:
    good = encoded(noise(0))
    one = write_parquet(tmp_path / "one.parquet", [good] * 3, [0] * 3)
    two = write_parquet(tmp_path / "two.parquet", [good, b"bad"], [0] * 2)
    store, labels, _ = read_parquet([one, two], "image", "label")
    with pytest.raises(SourceError, match=r"two\.parquet, row 1;"):
        EncodedImages(store, labels, 8).batch(np.array([4]))


def test_fingerprints_change_with_every_sample_label_and_view(tmp_path: Path) -> None:
    images = [encoded(noise(i)) for i in range(3)]
    prints = set()
    for number, (rows, labels) in enumerate(
        [(images, [0, 1, 0]), (images, [0, 1, 1]), (images[::-1], [0, 1, 0]), (images[:2], [0, 1])]
    ):
        path = write_parquet(tmp_path / f"{number}.parquet", rows, labels)
        prints.add(parquet_images(path, 8).fingerprint())
    prints.add(parquet_images(tmp_path / "0.parquet", 9).fingerprint())
    prints.add(parquet_images(tmp_path / "0.parquet", 8, flip=False).fingerprint())
    prints.add(parquet_images(tmp_path / "0.parquet", 8, least=0.05).fingerprint())
    prints.add(parquet_images(tmp_path / "0.parquet", 8, resize=1.5).fingerprint())
    assert len(prints) == 8
    again = parquet_images(tmp_path / "0.parquet", 8).fingerprint()
    assert again in prints
    assert len(again) == 64


def test_a_changed_parquet_file_is_read_anew(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(noise(0))] * 2, [0, 1])
    before = parquet_images(path, 20)
    first = before.fingerprint()
    write_parquet(path, [encoded(noise(1))] * 2, [0, 1])
    os.utime(path, (1, 1))
    after = parquet_images(path, 20)
    assert after.fingerprint() != first
    assert np.array_equal(after.batch(np.array([0]))[0], noise(1))


def test_file_fingerprints_change_with_a_byte(tmp_path: Path) -> None:
    store = files(tmp_path, 2)
    data = EncodedImages(store, [0, 1], 8)
    first = data.fingerprint()
    assert first == EncodedImages(store, [0, 1], 8).fingerprint()
    store.paths[1].write_bytes(encoded(noise(9)))
    assert data.fingerprint() != first


def test_array_images_are_copied_out() -> None:
    pixels = np.stack([noise(i, 4, 4) for i in range(3)])
    data = ArrayImages(pixels, [2, 0, 1])
    assert not data.decodes
    out = data.batch(np.array([1, 1]), np.random.default_rng(0))
    assert np.array_equal(out, pixels[[1, 1]])
    out[:] = 0
    assert pixels[1].any()
    assert data.fingerprint() != ArrayImages(pixels, [2, 0, 0]).fingerprint()
    assert data.fingerprint() != ArrayImages(pixels[::-1], [2, 0, 1]).fingerprint()
    assert data.fingerprint() == ArrayImages(pixels.copy(), [2, 0, 1]).fingerprint()


@pytest.mark.parametrize("kind", ["array", "files"])
def test_subset_is_a_view(tmp_path: Path, kind: str) -> None:
    labels = [5, 6, 7, 8]
    whole = (
        ArrayImages(np.stack([noise(i) for i in range(4)]), labels)
        if kind == "array"
        else EncodedImages(files(tmp_path, 4), labels, 20)
    )
    part = subset(whole, [2, 0, 2])
    assert part.decodes == whole.decodes
    assert len(part) == 3
    assert part.targets.tolist() == [7, 5, 7]
    assert np.array_equal(part.batch(np.array([1, 2])), np.stack([noise(0), noise(2)]))
    assert len({whole.fingerprint(), part.fingerprint(), subset(whole, [2, 0, 1]).fingerprint()}) == 3
    nested = subset(part, [1])
    assert np.array_equal(nested.batch(np.array([0]))[0], noise(0))


def private_memory() -> int:
    """Bytes of this process that no file backs: memory-mapped pages do not count, they can be dropped."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(row for row in status.read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    import pyarrow as pa

    raw = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = encoded(raw, "BMP")  # 196 kB, so that 400 of them are 79 MB
    grown = []
    for count in (50, 400):
        data = parquet_images(write_parquet(tmp_path / "x.parquet", [image] * count, [0] * count), 32)
        data.batch(np.arange(32))
        before = private_memory()
        data.check(10**6)
        for start in range(0, count, 32):
            data.batch(np.arange(start, min(start + 32, count)))
        grown.append(private_memory() - before)
        assert pa.total_allocated_bytes() < 8e6
        assert len(data) * len(image) > 9e6
    assert max(grown) < 16e6


def test_data_directory_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_directory() == tmp_path / "data"
    monkeypatch.setenv("CLGYM_DATA", "")
    assert data_directory() == Path.home() / ".cache" / "clgym" / "data"
