"""The hub's data sets on local copies with its columns, class names, layouts and numbers of rows."""

import hashlib
import re
import shutil
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clgym.errors import NotRegisteredError, SourceError, SourceMissingError
from clgym.events import IntArray
from clgym.hub import download, hub_task, hub_tasks, missing, require
from clgym.hub_sets import MTIL, SETS, class_lists
from clgym.images import CLIP_VIEW, PILOT_VIEW
from clgym.scenario import Data, Task

# A 1 x 1 bitmap without its pixel: the pixel is the row's number, so that every image tells where it was.
BITMAP = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 58, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
CALTECH = (
    "accordion airplanes anchor ant background_google barrel bass beaver binocular bonsai brain "
    "brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier "
    "cougar_body cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin "
    "dragonfly electric_guitar elephant emu euphonium ewer faces faces_easy ferry flamingo flamingo_head "
    "garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate "
    "joshua_tree kangaroo ketch lamp laptop leopards llama lobster lotus mandolin mayfly menorah "
    "metronome minaret motorbikes nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid "
    "revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler "
    "starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly "
    "wheelchair wild_cat windsor_chair wrench yin_yang"
).split()
EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
).split()
BACKGROUND = CALTECH.index("background_google")
NAMES: dict[str, Sequence[str]] = {
    "aircraft": ["F/A-18", *(f"7{i}-200" for i in range(99))],
    "caltech101": CALTECH,
    "eurosat": EUROSAT,
    "flowers": [str(i) for i in range(1, 103)],
    "mnist": [str(i) for i in range(10)],
    "sun397": ["/a/abbey", "/c/church/outdoor", *(f"/s/scene_{i}" for i in range(395))],
    # The mirrors name the classes of ImageNet's relatives by synset.
    "imagenet_r": sorted(class_lists()["imagenet_r"]["names"]),
    "imagenet_a": sorted(class_lists()["imagenet_a"]["names"]),
    "resisc45": ["airplane", "airport", *(f"class_{i:03d}" for i in range(2, 45))],
}
OTHER = {
    "aircraft": {"family": 70, "manufacturer": 30},
    "cifar100": {"coarse_label": 20},
    "eurosat": {"image_id": 0},
    "imagenet_r": {"class_name": 0},
    "resisc45": {"image_id": 0},
}


def caltech_labels(rows: int) -> IntArray:
    """Return 30 of each of 102 classes to train on; 437 of the background among the 6,084 to test on."""
    if rows == 3_060:
        return np.arange(rows) % 102
    others = np.delete(np.arange(102), BACKGROUND)
    return np.concatenate([np.full(437, BACKGROUND), others[np.arange(rows - 437) % 101]])


def write_set(
    root: Path,
    name: str,
    *,
    names: Sequence[str] | None = None,
    sizes: dict[str, int] | None = None,
    columns: Sequence[str] | None = None,
    shards: int = 1,
    place: str = "data",
    labels: Callable[[int], IntArray] | None = None,
    suffix: str = "",
) -> Path:
    """Write a set as the hub lays it out; the pixel of an image is 5,000,000 x split + row."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = SETS[name]
    known = [f"class_{i:03d}" for i in range(data.classes)] if names is None else list(names)
    image, label = columns or (data.image_column, data.label_column)
    folder = root.joinpath(*data.repo.split("/"), data.revision, place)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, rows) in enumerate((sizes or dict(data.sizes)).items()):
        pixels = [BITMAP + struct.pack("<I", 5_000_000 * number + i) for i in range(rows)]
        targets = labels(rows) if labels else np.arange(rows) % len(known)
        table = {image: pa.StructArray.from_arrays([pa.array(pixels), pa.nulls(rows, pa.string())], ["bytes", "path"])}
        features = {image: datasets.Image()}
        for other, classes in OTHER.get(name, {}).items():
            table[other] = pa.array(np.arange(rows) % classes) if classes else pa.array(["x"] * rows)
            features[other] = datasets.ClassLabel(classes) if classes else datasets.Value("string")
        table[label] = pa.array([known[y] for y in targets] if data.text else targets)
        kind = datasets.ClassLabel(names=known) if known else datasets.Value("int64")
        features[label] = datasets.Value("string") if data.text else kind
        whole = pa.table(table, schema=datasets.Features(features).arrow_schema)
        step = -(-rows // shards)
        for shard in range(shards):
            file = folder / f"{split}-{shard:05d}-of-{shards:05d}{suffix}.parquet"
            pq.write_table(whole.slice(shard * step, step), file, compression="snappy")
    return folder


def numbers(data: Data, index: IntArray) -> IntArray:
    """Return where the images at ``index`` came from: the numbers in their only pixel."""
    images = data.batch(index)
    assert isinstance(images, np.ndarray)
    found: IntArray = images[:, 0, 0, ::-1].astype(np.int64) @ np.array([1, 256, 65536])
    return found


def everything(data: Data) -> IntArray:
    return numbers(data, np.arange(len(data)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """All eleven sets at their true sizes, loaded with the network cut."""

    def cut(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    root = tmp_path_factory.mktemp("hub")
    for name in MTIL:
        shards = {"flowers": 6, "food": 2, "sun397": 3}.get(name, 1)
        labels = caltech_labels if name == "caltech101" else None
        place = "" if name == "mnist" else "data"
        write_set(root, name, names=NAMES.get(name), shards=shards, place=place, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLGYM_DATA", str(root))
        patch.setattr(socket.socket, "connect", cut)
        assert missing(MTIL) == []
        return {task.name: task for task in hub_tasks(MTIL, 1)}


def refuse(name: str, pattern: str) -> None:
    with pytest.raises(SourceError, match=pattern) as raised:
        hub_task(name, 1)
    assert "Remove " in str(raised.value)
    assert "clgym download CLIP-MTIL-v0" in str(raised.value)


def test_sets_are_mtils_in_order_one() -> None:
    order = "aircraft caltech101 cifar100 dtd eurosat flowers food mnist oxford_pet stanford_cars sun397"
    assert list(MTIL) == order.split()
    assert sum(SETS[name].classes for name in MTIL) == 1201
    for data in SETS.values():
        # Where no commit could be verified, the notes say so.
        assert re.fullmatch(r"[0-9a-f]{40}", data.revision) or (data.revision == "main" and "'main'" in data.notes)
        assert re.fullmatch(r"[\w-]+/[\w-]+", data.repo)
        assert data.notes
        assert data.licence
        assert SETS[data.name] is data


def test_prompts_are_zscls() -> None:
    first = {
        "aircraft": (2, "a photo of a {}, a type of aircraft."),
        "caltech101": (34, "a photo of a {}."),
        "cifar100": (18, "a photo of a {}."),
        "dtd": (8, "a photo of a {} texture."),
        "eurosat": (3, "a centered satellite photo of {}."),
        "flowers": (1, "a photo of a {}, a type of flower."),
        "food": (1, "a photo of a {}, a type of food."),
        "mnist": (1, 'a photo of the number: "{}".'),
        "oxford_pet": (1, "a photo of a {}, a type of pet."),
        "stanford_cars": (9, "a photo of a {}, a type of car."),
        "sun397": (2, "a photo of a {}."),
    }
    assert {name: (len(SETS[name].templates), SETS[name].templates[0]) for name in MTIL} == first
    for data in SETS.values():
        assert len(set(data.templates)) == len(data.templates)
        assert all(t.count("{}") == 1 for t in data.templates)


# methods_vision.md B1, with the departures of hub.json for SUN397.
@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [
        ("aircraft", 100, 3_334, 3_333),
        ("caltech101", 101, 6_941, 1_736),
        ("cifar100", 100, 50_000, 10_000),
        ("dtd", 47, 1_880, 1_880),
        ("eurosat", 10, 21_600, 5_400),
        ("flowers", 102, 1_020, 6_149),
        ("food", 101, 75_750, 25_250),
        ("mnist", 10, 60_000, 10_000),
        ("oxford_pet", 37, 3_680, 3_669),
        ("stanford_cars", 196, 8_144, 8_041),
        ("sun397", 397, 76_127, 21_750),
    ],
)
def test_splits_have_mtils_sizes(tasks: dict[str, Task], name: str, classes: int, train: int, test: int) -> None:
    task = tasks[name]
    assert (len(task.classes), len(task.train), len(task.test)) == (classes, train, test)
    assert len(task.prompts) == classes
    assert task.description.startswith(SETS[name].title)
    for data in (task.train, task.test):
        assert set(data.targets.tolist()) == set(range(classes))
        assert data.decodes


def test_caltech_drops_the_background_and_draws_its_split(tasks: dict[str, Task]) -> None:
    task = tasks["caltech101"]
    train, test = everything(task.train), everything(task.test)
    label = np.concatenate([caltech_labels(3_060), caltech_labels(6_084)])
    rows = [np.where(ids < 5_000_000, ids, ids - 5_000_000 + 3_060) for ids in (train, test)]
    assert not set(rows[0].tolist()) & set(rows[1].tolist())
    assert sorted(np.concatenate(rows).tolist()) == np.flatnonzero(label != BACKGROUND).tolist()
    assert not any("background" in name for name in task.classes)
    kept = [name for name in CALTECH if name != "background_google"]
    hub = [kept[i] for i in task.test.targets]
    assert hub == [CALTECH[i] for i in label[rows[1]]]


def test_caltech_words_are_clips(tasks: dict[str, Task]) -> None:
    words = dict(zip([n for n in CALTECH if n != "background_google"], tasks["caltech101"].classes, strict=True))
    assert words["faces"] == "off-center face"
    assert words["faces_easy"] == "centered face"
    assert words["airplanes"] == "airplane"
    assert words["cougar_face"] == "face of a cougar cat"
    assert words["yin_yang"] == "yin and yang symbol"
    assert words["inline_skate"] == "inline skate"


def test_the_drawn_splits_are_torchs_with_seed_42(tasks: dict[str, Task]) -> None:
    torch = pytest.importorskip("torch")
    split = torch.utils.data.random_split(range(8_677), [6_941, 1_736], generator=torch.Generator().manual_seed(42))
    kept = np.flatnonzero(np.concatenate([caltech_labels(3_060), caltech_labels(6_084)]) != BACKGROUND)
    ids = everything(tasks["caltech101"].test)
    assert np.where(ids < 5_000_000, ids, ids - 5_000_000 + 3_060).tolist() == kept[split[1].indices].tolist()


def test_dtd_takes_half_of_each_class_of_the_merged_split(tasks: dict[str, Task], home: Path) -> None:
    task = tasks["dtd"]
    ids = everything(task.train)
    assert len(set(ids.tolist())) == 1_880
    assert ids.max() < 3_760
    assert np.bincount(task.train.targets).tolist() == [40] * 47
    assert (ids % 47 == task.train.targets).all()
    write_set(home, "dtd")
    assert (everything(hub_task("dtd", 1).train) == ids).all()


def test_eurosat_trains_on_train_and_validation(tasks: dict[str, Task]) -> None:
    task = tasks["eurosat"]
    splits = numbers(task.train, np.array([0, 16_199, 16_200, 21_599]))
    assert splits.tolist() == [0, 16_199, 5_000_000, 5_005_399]
    assert numbers(task.test, np.array([0])).tolist() == [10_000_000]
    assert task.classes[0] == "annual crop land"
    assert task.classes[9] == "lake or sea"
    assert task.prompts[2][0] == "a centered satellite photo of brushland or shrubland."


def test_cifar_reads_img_and_fine_label(tasks: dict[str, Task], home: Path) -> None:
    assert tasks["cifar100"].train.targets[:101].tolist() == [*range(100), 0]
    write_set(home, "cifar100", columns=("image", "label"))
    refuse("cifar100", r"columns 'img' and 'fine_label' in .*; got 'image', 'coarse_label', 'label'\.")


def test_aircraft_reads_the_variant(tasks: dict[str, Task], home: Path) -> None:
    assert len(tasks["aircraft"].classes) == 100
    write_set(home, "aircraft", columns=("image", "label"))
    refuse("aircraft", r"columns 'image' and 'variant' in .*; got 'image', 'family', 'manufacturer', 'label'\.")


def test_food_tests_on_validation(tasks: dict[str, Task], home: Path) -> None:
    assert numbers(tasks["food"].test, np.array([0])).tolist() == [5_000_000]
    write_set(home, "food", sizes={"train": 75_750, "test": 25_250})
    with pytest.raises(SourceMissingError, match=r"mteb/food101@7cca05bf"):
        hub_task("food", 1)


def test_mnist_prompts_have_bare_digits(tasks: dict[str, Task], home: Path) -> None:
    assert tasks["mnist"].prompts[7] == ('a photo of the number: "7".',)
    words = "zero one two three four five six seven eight nine".split()
    write_set(home, "mnist", names=[f"{i} - {word}" for i, word in enumerate(words)])
    refuse("mnist", r"class names like '0' in mteb/mnist@.*; got '0 - zero'\.")


def test_sun_names_are_stripped(tasks: dict[str, Task]) -> None:
    assert tasks["sun397"].classes[:3] == ("abbey", "church outdoor", "scene 0")
    assert tasks["aircraft"].prompts[0][0] == "a photo of a F/A-18, a type of aircraft."


def test_underscores_become_spaces(tasks: dict[str, Task]) -> None:
    assert tasks["oxford_pet"].prompts[1] == ("a photo of a class 001, a type of pet.",)


def test_flowers_have_the_official_names(tasks: dict[str, Task]) -> None:
    classes = tasks["flowers"].classes
    assert (classes[0], classes[15], classes[101]) == ("pink primrose", "globe-flower", "blackberry lily")


def test_flowers_numbers_sorted_as_text_still_get_their_names(home: Path, tasks: dict[str, Task]) -> None:
    write_set(home, "flowers", names=sorted(str(i) for i in range(1, 103)))
    classes = hub_task("flowers", 1).classes
    official = tasks["flowers"].classes
    assert classes[:3] == (official[0], official[9], official[99])
    assert set(classes) == set(official)


def test_flowers_with_words_must_agree_in_order(home: Path, tasks: dict[str, Task]) -> None:
    official = list(tasks["flowers"].classes)
    spelled = [name.upper() if i != 94 else "air plant" for i, name in enumerate(official)]
    write_set(home, "flowers", names=spelled)
    assert hub_task("flowers", 1).classes == tuple(official)
    write_set(home, "flowers", names=sorted(official))
    refuse("flowers", r"the 102 official class names in order in dpdl-benchmark/.*; got \d+ that agree\.")


def test_flipped_flowers_are_refused(home: Path) -> None:
    write_set(home, "flowers", names=NAMES["flowers"], sizes={"train": 7_169, "test": 1_020})
    refuse("flowers", r"1,020 rows in split 'train' in dpdl-benchmark/oxford_flowers102@544b.*; got 7,169\.")
    assert "mteb" not in SETS["flowers"].repo


def test_another_number_of_rows_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", sizes={"train": 3_680, "test": 3_668})
    refuse("oxford_pet", r"3,669 rows in split 'test' in mteb/OxfordPets@557b.*; got 3,668\.")


def test_another_number_of_classes_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", names=[f"pet {i}" for i in range(36)])
    refuse("oxford_pet", r"37 classes in mteb/OxfordPets@.*; got 36\.")


def test_labels_without_names_and_out_of_range_are_refused(home: Path) -> None:
    write_set(home, "oxford_pet", names=[], labels=lambda rows: np.arange(rows) % 37)
    refuse("oxford_pet", r"a ClassLabel column 'label' in mteb/OxfordPets@.*; got labels without names\.")
    write_set(home, "oxford_pet", labels=lambda rows: np.arange(rows) % 37 - 1)
    refuse("oxford_pet", r"labels below 37 in .*; got -1 to 35\.")


def test_a_class_without_images_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", labels=lambda rows: np.arange(rows) % 36)
    refuse("oxford_pet", r"images of every class in .*; got none of 'class 036' in one half\.")


def test_splits_with_different_names_are_refused(home: Path) -> None:
    pets = [f"pet {i}" for i in range(37)]
    write_set(home, "oxford_pet", names=pets, sizes={"train": 3_680})
    write_set(home, "oxford_pet", names=pets[::-1], sizes={"test": 3_669})
    refuse("oxford_pet", r"the same class names in all splits in .*; got different ones\.")


def test_two_configurations_are_refused(home: Path) -> None:
    for place in ("one", "two"):
        write_set(home, "oxford_pet", place=place)
    refuse("oxford_pet", r"one folder with split 'train' in .*; got .*one, .*two\.")


@pytest.mark.parametrize("place", ["", "default", "plain_text"])
def test_layouts_of_the_hub_are_found(home: Path, place: str) -> None:
    folder = write_set(home, "oxford_pet", place=place, shards=2)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "train-00000-of-00001.parquet").write_bytes(b"unfinished")
    assert len(hub_task("oxford_pet", 1).train) == 3_680


def test_converted_layout_is_found(home: Path) -> None:
    folder = write_set(home, "oxford_pet", place="default")
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / f"{split}-00000-of-00001.parquet").rename(folder / split / "0000.parquet")
    assert missing(["oxford_pet"]) == []
    assert len(hub_task("oxford_pet", 1).test) == 3_669


def test_all_missing_sets_are_listed_with_the_command(home: Path) -> None:
    write_set(home, "oxford_pet")
    with pytest.raises(SourceMissingError) as raised:
        hub_tasks(["mnist", "oxford_pet", "dtd"], 1)
    text = str(raised.value)
    assert text.startswith(f"Expected 3 data sets of the hub in {home}; 2 missing: mteb/mnist@cf6afcba")
    assert SETS["dtd"].revision in text
    assert "OxfordPets" not in text
    assert "`clgym download CLIP-MTIL-v0`" in text
    with pytest.raises(SourceMissingError, match="`clgym download CLIP-XTAIL-v0`"):
        require(["mnist"], "CLIP-XTAIL-v0")
    assert len(missing(MTIL)) == 10


def test_a_missing_shard_is_missing(home: Path) -> None:
    folder = write_set(home, "oxford_pet", shards=3)
    (folder / "test-00001-of-00003.parquet").unlink()
    assert missing(["oxford_pet"]) == [f"mteb/OxfordPets@{SETS['oxford_pet'].revision}"]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(NotRegisteredError, match=r"a registered data set; got 'flower'. Did you mean 'flowers'\?"):
        hub_task("flower", 1)


def test_download_fetches_what_is_missing_at_the_revision(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path_factory.mktemp("there")
    source = write_set(hub, "oxford_pet").parent
    asked: list[dict[str, Any]] = []

    def fetch(**options: Any) -> None:
        asked.append(options)
        shutil.copytree(source, options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    said: list[str] = []
    for _ in range(2):
        download(["oxford_pet"], said.append)
    data = SETS["oxford_pet"]
    assert asked == [
        {
            "repo_id": "mteb/OxfordPets",
            "repo_type": "dataset",
            "revision": data.revision,
            "local_dir": home / "mteb" / "OxfordPets" / data.revision,
            "allow_patterns": ["*.parquet", "README.md"],
        }
    ]
    assert said[0] == f"[1/1] Oxford-IIIT Pet: mteb/OxfordPets@557b480f to {data.folder}"
    assert said[1] == "[1/1] Oxford-IIIT Pet: mteb/OxfordPets@557b480f is here"
    assert len(hub_task("oxford_pet", 1).test) == 3_669


def test_download_says_what_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    pattern = r"to fetch mteb/mnist@cf6a\w+; got ConnectionError: no route to host\. Check the network"
    with pytest.raises(SourceMissingError, match=pattern):
        download(["mnist"], lambda _: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: None)
    with pytest.raises(SourceError, match=r"the splits train, test in mteb/mnist@.*; got no Parquet file\."):
        download(["mnist"], lambda _: None)


# --- The relatives of ImageNet, and RESISC45 (methods_vision.md, Part C) ---------------------------------------------


def test_resisc45(home: Path) -> None:
    write_set(home, "resisc45", names=NAMES["resisc45"])
    task = hub_task("resisc45", 1)
    assert (len(task.classes), len(task.train), len(task.test)) == (45, 18_900, 6_300)
    assert task.classes[:3] == ("airplane", "airport", "class 002")


def test_imagenet_r_has_texts_for_labels_and_one_split(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SETS["imagenet_r"].sizes == (("test", 30_000),)
    monkeypatch.setitem(SETS, "imagenet_r", replace(SETS["imagenet_r"], sizes=(("test", 3_000),)))
    # Shuffled, so that the order of the classes is that of their synsets, not that of the rows.
    order = np.random.default_rng(0).permutation(3_000)
    write_set(home, "imagenet_r", names=NAMES["imagenet_r"], labels=lambda rows: order % 200, shards=5, place="test")
    task = hub_task("imagenet_r", 1)
    words = class_lists()["imagenet_r"]["names"]
    assert task.classes == tuple(words[synset] for synset in sorted(words))
    assert task.classes[:2] == ("goldfish", "great white shark")
    assert (len(task.train), len(task.test)) == (2_400, 600)
    ids = [everything(half) for half in (task.train, task.test)]
    assert sorted(np.concatenate(ids).tolist()) == list(range(3_000))
    for half, found, per_class in zip((task.train, task.test), ids, (12, 3), strict=True):
        assert np.bincount(half.targets).tolist() == [per_class] * 200
        assert (order[found] % 200 == half.targets).all()


def test_imagenet_r_with_a_strange_synset_is_refused(home: Path) -> None:
    write_set(home, "imagenet_r", names=[*NAMES["imagenet_r"][:-1], "n99999999"], place="test")
    with pytest.raises(SourceError, match=r"class names like 'n01443537' in axiong/imagenet-r@762a.*; got 'n99999999'"):
        hub_task("imagenet_r", 1)


def test_imagenet_a_has_one_split_and_file_names_with_a_hash(home: Path) -> None:
    assert "axiong" not in SETS["imagenet_a"].repo
    folder = write_set(home, "imagenet_a", names=NAMES["imagenet_a"], shards=2, suffix="-ab6d3d8ffc378699")
    task = hub_task("imagenet_a", 1)
    assert task.classes[:2] == ("stingray", "goldfinch")
    assert (len(task.train), len(task.test)) == (5_900, 1_600)
    assert np.bincount(task.train.targets).tolist() == [37 * 4 // 5 if c >= 100 else 38 * 4 // 5 for c in range(200)]
    assert not set(everything(task.train).tolist()) & set(everything(task.test).tolist())
    (folder / "train-00001-of-00002-ab6d3d8ffc378699.parquet").unlink()
    assert missing(["imagenet_a"]) == ["barkermrl/imagenet-a@main"]


def test_imagenet_a_of_another_mirror_is_refused(home: Path) -> None:
    write_set(home, "imagenet_a", names=NAMES["imagenet_a"], sizes={"train": 7_450})
    with pytest.raises(SourceError, match=r"7,500 rows in split 'train' in barkermrl/imagenet-a@main; got 7,450"):
        hub_task("imagenet_a", 1)


LEMMAS = [first for first, _ in class_lists()["imagenet100"]["first"]]


@pytest.fixture
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect fewer rows of ImageNet-1k than its 1.28 million."""
    data = SETS["imagenet100"]
    assert dict(data.sizes) == {"train": 1_281_167, "validation": 50_000}
    monkeypatch.setitem(SETS, "imagenet100", replace(data, sizes=(("train", 4_000), ("validation", 2_000))))


@pytest.mark.usefixtures("small_imagenet")
def test_imagenet100_is_the_first_hundred_of_imagenet(home: Path) -> None:
    names = [f"{lemma}, Other name" for lemma in LEMMAS] + [f"other {i}" for i in range(900)]
    write_set(home, "imagenet100", names=names, shards=3)
    task = hub_task("imagenet100", 1)
    assert (task.classes[0], task.classes[1], task.classes[99]) == ("tench", "goldfish", "goose")
    assert (len(task.classes), len(task.train), len(task.test)) == (100, 400, 200)
    kept = [row for row in range(4_000) if row % 1000 < 100]
    assert everything(task.train).tolist() == kept
    assert task.train.targets.tolist() == [row % 1000 for row in kept]
    assert (everything(task.test) - 5_000_000).tolist() == [row for row in range(2_000) if row % 1000 < 100]


@pytest.mark.usefixtures("small_imagenet")
@pytest.mark.parametrize("names", [[f"robin {i}" for i in range(100)], ["tench", "goldfish"], LEMMAS[::-1]])
def test_another_imagenet100_is_refused(home: Path, names: list[str]) -> None:
    # clane9/imagenet-100 and ambityga's have a hundred classes too, but not these.
    write_set(home, "imagenet100", names=names)
    with pytest.raises(SourceError, match=r"the 100 classes of the list first in ILSVRC/imagenet-1k@49e2.*; got \d+ "):
        hub_task("imagenet100", 1)


def test_the_list_of_imagenet100_is_the_literatures() -> None:
    words = [word for _, word in class_lists()["imagenet100"]["first"]]
    assert len(set(words)) == 100
    # JiazuoYu/MoE-Adapters4CL (99d3e61), cil/dataset_reqs/imagenet100_classes.txt.
    expected = {
        0: "tench",
        7: "rooster",
        21: "kite (bird of prey)",
        50: "American alligator",
        96: "toucan",
        99: "goose",
    }
    assert {i: words[i] for i in expected} == expected
    assert "clane9" in SETS["imagenet100"].notes


def test_a_gated_set_says_what_to_do_and_fetches_no_unlabelled_split(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fail(**options: Any) -> None:
        asked.append(options["allow_patterns"])
        raise ConnectionError("403")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(SourceMissingError, match=r"got ConnectionError: 403\. Accept the terms on its page on the hub"):
        download(["imagenet100"], lambda _: None)
    assert asked == [["data/train-*.parquet", "data/validation-*.parquet", "README.md"]]


def test_the_view_is_handed_on(home: Path) -> None:
    write_set(home, "oxford_pet")
    prints = {hub_task("oxford_pet", 1, view).train.fingerprint() for view in (CLIP_VIEW, PILOT_VIEW)}
    assert len(prints) == 2


def test_fingerprints_tell_the_sets_apart(home: Path, tasks: dict[str, Task]) -> None:
    write_set(home, "oxford_pet")
    first = hub_task("oxford_pet", 1)
    assert first.train.fingerprint() == hub_task("oxford_pet", 1).train.fingerprint()
    assert first.train.fingerprint() != first.test.fingerprint()
    assert len(first.train.fingerprint()) == len(hashlib.sha256().hexdigest())
