"""Data sets are read from small files in their true layouts; errors are one sentence."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
datasets = pytest.importorskip("datasets")

from PIL import Image

from train.data.cifar10 import MEAN, STD, cifar10, whole_cifar10
from train.data.cifar100 import CIFAR100, cifar100
from train.data.fashion_mnist import fashion_mnist
from train.data.imagenet import imagenet
from train.data.vaihingen import vaihingen
from train.data.wikitext2 import wikitext2


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables that are made from files out of the user's cache, and use no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_table(
    path: Path,
    images: str,
    classes: list[int],
    n_classes: int,
    size: int = 32,
    label: str = "label",
) -> Any:
    """Write a table like the hub's, whose images have one colour for each class."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(classes), size, size, 3), dtype=np.uint8)
    features = datasets.Features(
        {
            images: datasets.Image(),
            label: datasets.ClassLabel(names=[str(i) for i in range(n_classes)]),
        }
    )
    table = datasets.Dataset.from_dict(
        {images: [{"bytes": png(p), "path": None} for p in pixels], label: classes},
        features=features,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return pixels


def test_cifar10_is_read_from_the_hubs_files(tmp_path: Path):
    labels = [i % 10 for i in range(20)]
    where = tmp_path / "data" / "plain_text"
    pixels = write_table(where / "train-00000-of-00001.parquet", "img", labels, 10)
    write_table(where / "test-00000-of-00001.parquet", "img", labels[:3], 10)
    splits = cifar10("true", str(tmp_path / "data"))
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (16, 4)  # type: ignore[arg-type]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    for split, indices in ((splits.train, order[:16]), (splits.validation, order[16:])):
        for i, index in enumerate(indices):
            image, label = split[i]
            assert int(label) == labels[index]
            found = (image * STD[:, None, None] + MEAN[:, None, None]) * 255
            assert is_crop_of(found.round().numpy(), pixels[index].transpose(2, 0, 1))
    torch.manual_seed(3)
    one, _ = splits.train[0]
    other, _ = splits.train[0]
    torch.manual_seed(3)
    again, _ = splits.train[0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_cifar100_is_read_from_the_hubs_files(tmp_path: Path):
    labels = [0, 99, 41, 7]
    where = tmp_path / "data" / "cifar100"
    for name, part in (("train", labels), ("test", labels[:2])):
        path = where / f"{name}-00000-of-00001.parquet"
        pixels = write_table(path, "img", part, 100, label="fine_label")
    splits = cifar100("true", str(tmp_path / "data"))
    assert splits.n_classes == 100
    assert splits.validation is not None
    assert [int(splits.train[i][1]) for i in range(4)] == labels
    image, label = splits.validation[1]
    mean, std = (t[:, None, None] for t in (CIFAR100.mean, CIFAR100.std))
    found = ((image * std + mean) * 255).round().numpy()
    np.testing.assert_array_equal(found, pixels[1].transpose(2, 0, 1))
    assert int(label) == 99


def test_fashion_mnist_is_read_from_the_hubs_files(tmp_path: Path):
    rng = np.random.default_rng(0)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[str(i) for i in range(10)]),
        }
    )
    pixels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    rows = [{"bytes": png(p), "path": None} for p in pixels]
    table = datasets.Dataset.from_dict({"image": rows, "label": [3, 0, 9]}, features)
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        table.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    splits = fashion_mnist("true", str(tmp_path / "data"))
    for split in (splits.train, splits.validation):
        assert split is not None
        image, label = split[2]
        found = ((image[0] * 0.3530 + 0.2860) * 255).round().numpy()
        np.testing.assert_array_equal(found, pixels[2])
        assert int(label) == 9


def is_crop_of(image: Any, whole: Any, padding: int = 4) -> bool:
    padded = np.pad(whole, ((0, 0), (padding, padding), (padding, padding)))
    n = whole.shape[-1]
    return any(
        np.array_equal(image, padded[:, top : top + n, left : left + n])
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    )


def test_imagenet_is_read_from_directories_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(1)
    for folder in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            path = tmp_path / "data" / folder / name / "0.JPEG"
            path.parent.mkdir(parents=True)
            pixels = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match="ImageNet-1K has 1000 classes, but found 2"):
        imagenet("true", str(tmp_path / "data"))
    monkeypatch.setattr("train.data.imagenet.N_CLASSES", 2)
    splits = imagenet("true", str(tmp_path / "data"))
    for part in (splits.train, splits.validation):
        assert part is not None
        image, label = part[1]
        assert image.shape == (3, 224, 224)
        assert int(label) == 1
    a, b = splits.train[0][0], splits.train[0][0]
    assert not torch.equal(a, b)
    assert splits.validation is not None
    assert torch.equal(splits.validation[0][0], splits.validation[0][0])


def test_the_centre_of_a_photograph_is_cropped():
    from train.data.imagenet import _center_crop, _random_crop

    pixels = np.zeros((512, 768, 3), np.uint8)
    # The white part is 448 x 448 pixels, with a margin that resampling also reads.
    pixels[28:484, 156:612] = 255
    assert np.array(_center_crop(Image.fromarray(pixels))).min() > 250
    assert _random_crop(Image.fromarray(pixels)).size == (224, 224)


TEXT = "\n = Title = \n\n" + " the cat sat on the mat \n" * 30 + " rare words here \n"


def write_text(directory: Path) -> None:
    directory.mkdir()
    for name in ("train", "valid", "test"):
        (directory / f"wiki.{name}.tokens").write_text(TEXT)


def write_rows(directory: Path) -> None:
    for name in ("train", "validation", "test"):
        path = directory / "wikitext-2-v1" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{line}\n" if line else "" for line in TEXT.split("\n")]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(path)


def write_archive(directory: Path) -> None:
    directory.mkdir()
    write_text(directory / "wikitext-2")


def write_hub_cache(directory: Path) -> None:
    """Write what ``huggingface_hub`` keeps: an old revision, and the newest one."""
    repository = directory / "datasets--Salesforce--wikitext" / "snapshots"
    old = repository / "fff" / "wikitext-2-v1" / "train-00000-of-00001.parquet"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    os.utime(repository / "fff", (0, 0))
    write_rows(repository / "000")


def write_whole_repository(directory: Path) -> None:
    """Write two of the data sets that the repository holds."""
    write_rows(directory)
    other = directory / "wikitext-103-v1" / "train-00000-of-00001.parquet"
    other.parent.mkdir()
    other.write_bytes(b"other")


def write_datasets_cache(directory: Path) -> None:
    """Write the cache of ``datasets`` for the hub's tables."""
    write_rows(directory.with_name("hub"))
    tables = datasets.load_dataset(str(directory.with_name("hub") / "wikitext-2-v1"))
    made = Path(tables["train"].cache_files[0]["filename"]).parent
    kept = directory / "Salesforce___wikitext" / "wikitext-2-v1" / "0.0.0" / "abc"
    shutil.copytree(made, kept)
    info = json.loads((kept / "dataset_info.json").read_text())
    info |= {"dataset_name": "wikitext", "config_name": "wikitext-2-v1"}
    (kept / "dataset_info.json").write_text(json.dumps(info))
    for path in kept.glob("*.arrow"):
        path.rename(kept / path.name.replace("wikitext-2-v1", "wikitext"))
    other = directory / "Salesforce___wikitext" / "wikitext-103-v1" / "0.0.0" / "abc"
    other.mkdir(parents=True)
    (other / "wikitext-train.arrow").write_bytes(b"other")
    info |= {"config_name": "wikitext-103-v1"}
    (other / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "write",
    [
        write_text,
        write_archive,
        write_rows,
        write_whole_repository,
        write_hub_cache,
        write_datasets_cache,
    ],
)
def test_wikitext2_is_read_from_every_layout(
    tmp_path: Path, write: Callable[[Path], None]
):
    write(tmp_path / "data")
    splits = wikitext2("true", str(tmp_path / "data"))
    # Five frequent words, the unknown word and the end of a line.
    assert splits.n_classes == 7
    inputs, targets = splits.train.tensors  # type: ignore[attr-defined]
    # The lines have 3 + 1, 30 (6 + 1) and 3 + 1 words; the last word is only a target.
    assert inputs.shape == ((4 + 210 + 4 - 1) // 32, 32)
    torch.testing.assert_close(inputs.flatten()[1:], targets.flatten()[:-1])
    words = ["<unk>", "<eos>", "cat", "mat", "on", "sat", "the"]
    read = [words[i] for i in inputs[0, :11]]
    sentence = ["the", "cat", "sat", "on", "the", "mat", "<eos>"]
    assert read == ["<unk>"] * 3 + ["<eos>", *sentence]


TILES = (*(1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26), *(28, 30, 32, 34, 37))
WHITE, BLUE, CYAN = (255, 255, 255), (0, 0, 255), (0, 255, 255)
GREEN, YELLOW, RED = (0, 255, 0), (255, 255, 0), (255, 0, 0)


def write_tiles(directory: Path) -> dict[int, Any]:
    """Write tiles, and return the classes of their pixels.

    The red of a photograph is the number of its tile, and the green is 100 plus the class.
    """
    rng = np.random.default_rng(2)
    colours = np.array([WHITE, BLUE, CYAN, GREEN, YELLOW, RED], np.uint8)
    classes = {}
    for number in range(1, 39):
        known = rng.integers(0, 6, (260, 300))
        photograph = np.stack([0 * known + number, known + 100, 0 * known], -1)
        write_tile(directory, "top", number, photograph.astype(np.uint8))
        if number in TILES:
            classes[number] = known
            write_tile(directory, "gts_for_participants", number, colours[known])
    return classes


def write_tile(directory: Path, folder: str, number: int, pixels: Any) -> None:
    path = directory / folder / f"top_mosaic_09cm_area{number}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compression="tiff_lzw" if number % 2 else None)


def test_vaihingen_is_read_from_tiles(tmp_path: Path):
    classes = write_tiles(tmp_path)
    splits = vaihingen("true", str(tmp_path))
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (10_000, 1_000)  # type: ignore[arg-type]
    torch.manual_seed(0)
    tiles: dict[str, set[int]] = {"train": set(), "validation": set()}
    for name, split in (("train", splits.train), ("validation", splits.validation)):
        for i in range(80):
            image, target = split[i]
            assert image.shape == (3, 256, 256)
            number = round(float(image[0, 0, 0]) * 255)
            tiles[name].add(number)
            torch.testing.assert_close(image[1] * 255 - 100, target.float())
            if i < 4:
                assert is_part_of(target.numpy(), classes[number])
    assert tiles["train"] == set(TILES[:11])
    assert tiles["validation"] == set(TILES[11:])


def is_part_of(target: Any, whole: Any) -> bool:
    sides = [target, target[::-1], target[:, ::-1], target[::-1, ::-1]]
    return any(
        np.array_equal(side, whole[top : top + 256, left : left + 256])
        for side in sides
        for top in range(5)
        for left in range(45)
    )


def read(name: str, directory: str | None) -> Any:
    return {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "fashion_mnist": fashion_mnist,
        "imagenet": imagenet,
        "wikitext2": wikitext2,
        "vaihingen": vaihingen,
    }[name]("true", directory)


@pytest.mark.parametrize(
    "name",
    ["cifar10", "cifar100", "fashion_mnist", "imagenet", "wikitext2", "vaihingen"],
)
@pytest.mark.parametrize("place", ["nowhere", "empty", None])
def test_missing_data_say_what_to_do(tmp_path: Path, name: str, place: str | None):
    (tmp_path / "empty").mkdir()
    directory = None if place is None else str(tmp_path / place)
    with pytest.raises(FileNotFoundError, match=r"--data-dir.*--data embedded"):
        read(name, directory)


def test_a_corrupt_archive_is_reported_in_one_sentence(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ValueError, match=r"CIFAR-10 in .* cannot be read .*download"):
        read("cifar10", str(path.parent))


def test_a_corrupt_part_of_an_archive_is_reported_in_one_sentence(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_table(path, "img", [0, 1, 2], 10)
    whole = bytearray(path.read_bytes())
    whole[100:400] = bytes(300)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"CIFAR-10.* download it again\.$") as caught:
        read("cifar10", str(path.parent))
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_named(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pixels = np.zeros((32, 32, 3), np.uint8)
    rows = [{"bytes": b, "path": None} for b in (png(pixels), png(pixels)[:60])]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=[str(i) for i in range(10)]),
        }
    )
    path.parent.mkdir()
    table = datasets.Dataset.from_dict({"img": rows, "label": [0, 1]}, features)
    table.to_parquet(path)
    with pytest.raises(ValueError, match=r"Image 1 of CIFAR-10 cannot be decoded"):
        read("cifar10", str(path.parent))


def test_a_damaged_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.data.imagenet.N_CLASSES", 2)
    for split in ("train", "validation"):
        for name in ("n01440764", "n01443537"):
            path = tmp_path / "data" / split / name / "0.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"\xff\xd8 not a photograph")
    splits = imagenet("true", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="Image 1 of ImageNet-1K cannot be decoded"):
        splits.train[1]


def test_images_of_another_size_are_refused(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_table(path, "img", [0, 1], 10, size=31)
    with pytest.raises(ValueError, match=r"Image 0 of CIFAR-10 has \(31, 31\) pixels"):
        read("cifar10", str(path.parent))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'(?s)WikiText-2 .*\spip install "trajstore\[data\]"'
    ):
        read("wikitext2", None)


def test_other_tables_are_refused(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_table(path, "picture", [0, 1], 10)
    with pytest.raises(
        ValueError, match=r"not CIFAR-10: .* columns \['picture', 'label'"
    ):
        read("cifar10", str(path.parent))


def test_a_wrong_number_of_classes_is_refused(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_table(path, "img", list(range(12)), 12)
    with pytest.raises(ValueError, match="CIFAR-10 has 10 classes, but found 12"):
        read("cifar10", str(path.parent))
    write_table(path, "img", [0, 1], 20, label="fine_label")
    with pytest.raises(ValueError, match="CIFAR-100 has 100 classes, but found 20"):
        read("cifar100", str(path.parent))


def test_a_missing_split_is_named(tmp_path: Path):
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    write_table(path, "img", [0, 1], 10)
    with pytest.raises(ValueError, match=r"no split 'train', only \['test'\]"):
        read("cifar10", str(path.parent))


def test_half_of_a_text_is_refused(tmp_path: Path):
    (tmp_path / "wiki.train.tokens").write_text(TEXT)
    with pytest.raises(FileNotFoundError, match="belong together"):
        read("wikitext2", str(tmp_path))
    (tmp_path / "wiki.valid.tokens").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read("wikitext2", str(tmp_path))


def test_tiles_of_other_colours_or_sizes_are_refused(tmp_path: Path):
    write_tiles(tmp_path)
    write = partial(write_tile, tmp_path, "gts_for_participants", 3)
    for pixels, problem in (
        (np.full((260, 300, 3), 7, np.uint8), r"the colour \(7, 7, 7\)"),
        (np.zeros((100, 300, 3), np.uint8), r"the shape \(100, 300, 3\)"),
        (np.zeros((260, 300), np.uint8), "the image mode L, expected 8-bit RGB"),
    ):
        write(pixels)
        with pytest.raises(ValueError, match=rf"area3\.tif has {problem}"):
            read("vaihingen", str(tmp_path))
    path = tmp_path / "gts_for_participants" / "top_mosaic_09cm_area3.tif"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"area3\.tif cannot be read"):
        read("vaihingen", str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="1 of 16 tiles, starting with tile 3"):
        read("vaihingen", str(tmp_path))


@pytest.mark.parametrize(
    ("load", "shape", "target_shape"),
    [
        (cifar10, (3, 32, 32), ()),
        (whole_cifar10, (3, 32, 32), ()),
        (cifar100, (3, 32, 32), ()),
        (fashion_mnist, (1, 28, 28), ()),
        (imagenet, (3, 32, 32), ()),
        (wikitext2, (32,), (32,)),
        (vaihingen, (3, 32, 32), (32, 32)),
    ],
)
def test_stand_ins_have_the_form_of_the_true_data(
    load: Any, shape: tuple[int, ...], target_shape: tuple[int, ...]
):
    splits = load("embedded", None)
    for split in (splits.train, splits.validation):
        inputs, target = split[0]
        assert inputs.shape == shape
        assert target.shape == target_shape
        assert target.dtype == torch.int64
        assert len(split) > 30
    targets = torch.stack([splits.train[i][1] for i in range(100)])
    assert 0 <= int(targets.min()) <= int(targets.max()) < splits.n_classes
    assert len(targets.unique()) > 5


def test_every_word_of_wikitext2_can_be_known(tmp_path: Path):
    write_text(tmp_path / "data")
    splits = wikitext2("true", str(tmp_path / "data"), context=35, min_frequency=1)
    # The special words, and the words of the sentence, the title and the last line.
    assert splits.n_classes == 2 + 5 + 2 + 3
    assert splits.train[0][0].shape == (35,)
