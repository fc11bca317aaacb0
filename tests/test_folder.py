import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clgym.errors import SourceError
from clgym.folder import folder_tasks
from clgym.images import ArrayImages


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def png(shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 6), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def write(
    path: Path,
    labels: Sequence[Any],
    names: Sequence[str] = (),
    columns: tuple[str, str] = ("image", "label"),
    images: Sequence[Any] = (),
) -> None:
    """Write a Parquet file: integers with names in the schema, bare integers, or strings."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images or [{"bytes": png(i), "path": None} for i in range(len(labels))]
    table = pa.table({columns[0]: rows, columns[1]: labels})
    if names:
        features = {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=list(names))}
        table = table.cast(datasets.Features(features).arrow_schema)
    pq.write_table(table, path)


def write_task(folder: Path, names: Sequence[str] = ("cat", "big_dog")) -> None:
    write(folder / "train.parquet", [0, 1, 1], names)
    write(folder / "test.parquet", [1, 0], names)


def write_images(folder: Path, split: str, classes: Sequence[str], count: int = 2, suffix: str = "png") -> None:
    for number, name in enumerate(classes):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / split / name / f"{i}.{suffix}").write_bytes(png(10 * number + i))


def refuse(root: Path, pattern: str) -> None:
    with pytest.raises(SourceError, match=rf"(?s)^Expected .*{pattern}"):
        folder_tasks(root, 6)


def test_parquet_folders_become_tasks_in_order_of_name(root: Path) -> None:
    write_task(root / "b_second")
    write_task(root / "a_first")
    (root / ".hidden").mkdir()
    first, second = folder_tasks(root, 6)
    assert (first.name, second.name) == ("a_first", "b_second")
    assert first.classes == ("cat", "big dog")
    assert first.prompts == (("a photo of a cat.",), ("a photo of a big dog.",))
    assert first.description == "a first: 2 classes, 3 training and 2 test images."
    assert first.train.targets.tolist() == [0, 1, 1]
    assert first.test.targets.tolist() == [1, 0]
    images = first.train.batch(np.array([0, 1, 2]))
    assert isinstance(images, np.ndarray)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_shards_and_validation_are_read(root: Path) -> None:
    write(root / "t" / "train-00000-of-00002.parquet", [0, 1], ["a", "b"])
    write(root / "t" / "train-00001-of-00002.parquet", [1], ["a", "b"])
    write(root / "t" / "validation.parquet", [0], ["a", "b"])
    (task,) = folder_tasks(root, 6)
    assert task.train.targets.tolist() == [0, 1, 1]
    assert len(task.test) == 1


def test_string_labels_are_numbered_by_name(root: Path) -> None:
    write(root / "t" / "train.parquet", ["dog", "cat", "dog"])
    write(root / "t" / "test.parquet", ["dog"])
    (task,) = folder_tasks(root, 6)
    assert task.classes == ("cat", "dog")
    assert task.train.targets.tolist() == [1, 0, 1]


def test_names_of_the_test_schema_are_matched_by_name(root: Path) -> None:
    write(root / "t" / "train.parquet", [0, 1], ["zebra", "ant"])
    write(root / "t" / "test.parquet", [0, 1, 1], ["ant", "zebra"])
    (task,) = folder_tasks(root, 6)
    assert task.classes == ("zebra", "ant")
    assert task.test.targets.tolist() == [1, 0, 0]


def test_names_without_images_are_left_out(root: Path) -> None:
    names = ["a", "b", "c"]
    write(root / "t" / "train.parquet", [0, 2], names)
    write(root / "t" / "test.parquet", [2], names)
    (task,) = folder_tasks(root, 6)
    assert task.classes == ("a", "c")
    assert task.test.targets.tolist() == [1]


def test_image_folders_become_tasks(root: Path) -> None:
    write_images(root / "t", "train", ["cat", "big_dog"], 3, "PNG")
    write_images(root / "t", "test", ["cat", "big_dog"])
    (root / "t" / "train" / "cat" / "notes.txt").write_text("not an image")
    (task,) = folder_tasks(root, 6)
    assert task.classes == ("big dog", "cat")
    assert task.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    images = task.train.batch(np.array([0, 5]))
    assert isinstance(images, np.ndarray)
    assert images[:, 0, 0, 0].tolist() == [10, 2]


def test_task_json_sets_words_and_flip(root: Path) -> None:
    write_task(root / "t")
    card = {"title": "Animals", "templates": ["a {}.", "my {}!"], "flip": False}
    (root / "t" / "task.json").write_text(json.dumps(card))
    (task,) = folder_tasks(root, 6)
    assert task.description.startswith("Animals: 2 classes")
    assert task.prompts[1] == ("a big dog.", "my big dog!")
    flipped = folder_tasks(root, 6)[0].train.fingerprint()
    (root / "t" / "task.json").write_text(json.dumps({"description": "Pets.", "template": "one {}"}))
    (task,) = folder_tasks(root, 6)
    assert task.description == "Pets."
    assert task.prompts[0] == ("one cat",)
    assert task.train.fingerprint() != flipped


def test_the_copy_elsewhere_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    write_task(root / "t")
    shutil.copytree(root, tmp_path / "copy")
    prints = [folder_tasks(p, 6)[0].train.fingerprint() for p in (root, tmp_path / "copy")]
    assert prints[0] == prints[1]
    assert not isinstance(folder_tasks(root, 6)[0].train, ArrayImages)


def test_a_missing_path_is_refused(root: Path) -> None:
    refuse(root / "no", r"a folder at .*no; got nothing\. Give one sub-folder per task")
    (root / "file").write_text("")
    refuse(root / "file", r"a folder at .*file; got a file\.")


def test_an_empty_folder_is_refused(root: Path) -> None:
    refuse(root, r"one sub-folder per task in .*mine; got an empty folder\. Give")


def test_a_single_task_is_refused_as_such(root: Path) -> None:
    write_task(root)
    refuse(root, r"got a single task\. Move it one level down")
    shutil.rmtree(root)
    write_images(root, "train", ["a", "b"])
    write_images(root, "test", ["a", "b"])
    refuse(root, r"got a single task\. Move it one level down")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_refused(root: Path, split: str) -> None:
    write_task(root / "t")
    (root / "t" / f"{split}.parquet").unlink()
    refuse(root, rf"{split}\.parquet or {split}/<class>/ in .*t; got .*parquet\. Add the {split} data")


def test_a_task_folder_without_anything_is_refused(root: Path) -> None:
    (root / "t").mkdir()
    refuse(root, r"train\.parquet or train/<class>/ in .*t; got an empty folder")


def test_one_class_only_is_refused(root: Path) -> None:
    write(root / "t" / "train.parquet", [1, 1], ["a", "b"])
    write(root / "t" / "test.parquet", [1], ["a", "b"])
    refuse(root, r"at least two classes in .*train\.parquet; got only 'b'\. Add images of another class")


def test_a_class_only_in_test_is_refused(root: Path) -> None:
    write(root / "t" / "train.parquet", [0, 1], ["a", "b", "c"])
    write(root / "t" / "test.parquet", [0, 2], ["a", "b", "c"])
    refuse(root, r"classes of .*test\.parquet in .*train\.parquet; got 'c' only in the test data\. Add training")


def test_an_unreadable_image_is_refused_at_once(root: Path) -> None:
    write_images(root / "t", "train", ["a", "b"])
    write_images(root / "t", "test", ["a", "b"])
    (root / "t" / "test" / "b" / "1.png").write_bytes(b"<html>404</html>")
    refuse(root, r"a readable image at .*test/b/1\.png; got UnidentifiedImageError.* Replace the image")
    shutil.rmtree(root / "t")
    write_task(root / "t")
    rows = [{"bytes": png(), "path": None}, {"bytes": b"broken", "path": None}]
    write(root / "t" / "train.parquet", [0, 1], ["cat", "big_dog"], images=rows)
    refuse(root, r"a readable image at .*train\.parquet, row 1; got")


def test_wrong_columns_are_named(root: Path) -> None:
    write_task(root / "t")
    write(root / "t" / "train.parquet", [0, 1], ["a", "b"], columns=("img", "fine_label"))
    refuse(root, r"columns 'image' and 'label' in .*train\.parquet; got 'img', 'fine_label'\. Rename")


def test_wrong_types_are_named(root: Path) -> None:
    write_task(root / "t")
    write(root / "t" / "train.parquet", [0, 1], images=["one.png", "two.png"])
    refuse(root, r"encoded images .* in column 'image' of .*train\.parquet; got string\. Write the column as")
    write(root / "t" / "train.parquet", [0.5, 1.5])
    refuse(root, r"integers or strings in column 'label' of .*train\.parquet; got double\.")


def test_integers_without_names_are_refused(root: Path) -> None:
    write(root / "t" / "train.parquet", [0, 1])
    write(root / "t" / "test.parquet", [0])
    refuse(root, r"class names for the integers in column 'label' of .*train\.parquet; got none in the schema\.")


def test_labels_out_of_range_and_missing_are_refused(root: Path) -> None:
    write_task(root / "t")
    write(root / "t" / "train.parquet", [0, 1, -1], ["a", "b"])
    refuse(root, r"labels from 0 to 1; got -1 at .*train\.parquet, row 2\. Remove the row")
    write(root / "t" / "train.parquet", [0, None, 1], ["a", "b"])
    refuse(root, r"a label in every row; got none at .*train\.parquet, row 1\. Remove the row or label it")


def test_no_rows_and_no_parquet_are_refused(root: Path) -> None:
    write_task(root / "t")
    (root / "t" / "train.parquet").write_bytes(b"not parquet")
    refuse(root, r"a Parquet file at .*train\.parquet; got .*Export it again")
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())})
    pq.write_table(empty, root / "t" / "train.parquet")
    refuse(root, r"images in .*train\.parquet; got no rows\. Add some")


def test_a_damaged_body_is_refused_with_the_file(root: Path) -> None:
    write_task(root / "t")
    file = root / "t" / "train.parquet"
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    refuse(root, r"to convert .*train\.parquet to Arrow in .*arrow; got .* Export the files again")


def test_duplicate_names_after_rewording_are_refused(root: Path) -> None:
    write_task(root / "t", ["big dog", "big_dog"])
    refuse(root, r"class names in .*train\.parquet that differ once .*; got 'big dog' and 'big_dog'\. Rename one")


def test_a_class_folder_without_images_is_refused(root: Path) -> None:
    write_images(root / "t", "train", ["a", "b"])
    (root / "t" / "train" / "b" / "0.png").rename(root / "t" / "train" / "b" / "0.raw")
    (root / "t" / "train" / "b" / "1.png").unlink()
    refuse(root, r"images in .*train/b; got no file ending in .*\.png.* Add images, or remove the folder")


def test_a_split_without_class_folders_is_refused(root: Path) -> None:
    (root / "t" / "train").mkdir(parents=True)
    (root / "t" / "train" / "0.png").write_bytes(png())
    refuse(root, r"one sub-folder per class in .*train; got none\. Give one sub-folder per task")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{", r"JSON in .*task\.json; got .*Correct or remove the file"),
        ("[1]", r"in .*task\.json an object with title.*; got a list or a value: \[1\]\."),
        ('{"titel": "x"}', r"got titel: 'x'\. Correct or remove the entry"),
        ('{"flip": "no"}', r"got flip: 'no'\."),
        (
            '{"template": "a photo"}',
            r"template with \{\} for the class name in .*task\.json; got 'a photo'\.",
        ),
        ('{"templates": ["a {}", 3]}', r"template with \{\} .*; got 3\. Write it like"),
    ],
)
def test_a_wrong_task_json_is_refused(root: Path, text: str, pattern: str) -> None:
    write_task(root / "t")
    (root / "t" / "task.json").write_text(text)
    refuse(root, pattern)


def test_a_template_without_a_place_for_the_class_is_refused(root: Path) -> None:
    write_task(root / "t")
    with pytest.raises(SourceError, match=r"for the class name in the setting template; got 'photo'"):
        folder_tasks(root, 6, template="photo")


def test_a_large_split_is_sampled_evenly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(root / "t", "train", ["a", "b"], 10)
    write_images(root / "t", "test", ["a", "b"], 1)
    (root / "t" / "train" / "a" / "1.png").write_bytes(b"broken")
    monkeypatch.setattr("clgym.folder.CHECKED", 5)
    (task,) = folder_tasks(root, 6)
    with pytest.raises(SourceError, match=r"train/a/1\.png"):
        task.train.batch(np.array([1]))


def test_progress_bars_come_back(root: Path) -> None:
    import datasets

    write_task(root / "t")
    datasets.enable_progress_bars()
    folder_tasks(root, 6)
    assert not datasets.are_progress_bars_disabled()
