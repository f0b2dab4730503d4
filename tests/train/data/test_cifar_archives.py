"""CIFAR is read from small archives in its true Python format, written byte by byte."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.data.cifar10 import CIFAR10, cifar10, whole_cifar10
from train.data.cifar100 import CIFAR100, cifar100

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
NAMES = {
    "cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    "cifar100": ["train", "test"],
}


def text(value: bytes) -> bytes:
    """Return a string as it appears in Python 2's pickles."""
    return b"U" + bytes([len(value)]) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_pickle(
    pixels: npt.NDArray[np.uint8], labels: dict[bytes, list[int]]
) -> bytes:
    """Pickle a batch as Python 2 and numpy 1 did, in protocol 2."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    array += number(0) + b"\x85" + text(b"b") + b"\x87R("
    array += number(1) + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R("
    array += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0)
    array += b"tb\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    items = text(b"data") + array
    for name, values in labels.items():
        items += text(name) + b"](" + b"".join(map(number, values)) + b"e"
    return b"\x80\x02}(" + text(b"batch_label") + text(b"batch 1") + items + b"u."


def write(directory: Path, name: str, n: int = 4) -> dict[str, tuple[Any, Any]]:
    """Write an archive of noise, and return pixels and classes by name of file."""
    rng = np.random.default_rng(0)
    content = {}
    for file in NAMES[name]:
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        classes = rng.integers(0, 10 if name == "cifar10" else 100, n)
        labels = {b"labels": classes.tolist()}
        if name == "cifar100":
            coarse = (classes // 5).tolist()
            labels = {b"coarse_labels": coarse, b"fine_labels": classes.tolist()}
        path = directory / FOLDERS[name] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(python2_pickle(pixels, labels))
        content[file] = (pixels, classes)
    return content


def whole(name: str, directory: Path) -> Any:
    load = whole_cifar10 if name == "cifar10" else cifar100
    return load("true", str(directory))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [".", "folder"])
def test_archives_are_read(tmp_path: Path, name: str, place: str):
    content = write(tmp_path, name)
    splits = whole(name, tmp_path / (FOLDERS[name] if place == "folder" else place))
    cifar = CIFAR10 if name == "cifar10" else CIFAR100
    assert splits.n_classes == cifar.n_classes
    *train, test = content.values()
    for split, parts in ((splits.train, train), (splits.validation, [test])):
        pixels = np.concatenate([p for p, _ in parts])
        classes = np.concatenate([c for _, c in parts])
        assert len(split) == len(classes)
        for i, expected in enumerate(classes):
            image, label = split[i]
            assert int(label) == expected
            # Each image is stored channel by channel, and each channel row by row.
            rows = pixels[i].reshape(3, 32, 32).astype(float) / 255
            mean, std = (t.double()[:, None, None] for t in (cifar.mean, cifar.std))
            np.testing.assert_allclose(image * std + mean, rows, atol=1e-6)


def test_the_other_split_of_cifar10_is_read_from_its_archive(tmp_path: Path):
    write(tmp_path, "cifar10")
    splits = cifar10("true", str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (16, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    write(tmp_path, name)
    missing = tmp_path / FOLDERS[name] / NAMES[name][-1]
    missing.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{missing.name} is missing; .* belong"
    ):
        whole(name, tmp_path)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("this must not be run",)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "labels", "harmful"])
def test_damage_is_reported_in_one_sentence(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path, "cifar100")
    path = tmp_path / FOLDERS["cifar100"] / "train"
    before = path.read_bytes()
    path.write_bytes(
        {
            "cut": before[:2000],
            "empty": b"",
            "other": b"PAR1" + bytes(100),
            "labels": before.replace(b"fine_labels", b"fine_labelz"),
            "harmful": pickle.dumps(Harmful()),
        }[damage]
    )
    with pytest.raises(
        ValueError,
        match=r"train is not a file of CIFAR-100 \(.*\); download it again\.$",
    ) as caught:
        whole("cifar100", tmp_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_other_classes_and_numbers_of_labels_are_refused(tmp_path: Path):
    write(tmp_path, "cifar10")
    path = tmp_path / FOLDERS["cifar10"] / "data_batch_3"
    pixels = np.zeros((4, 3072), np.uint8)
    path.write_bytes(python2_pickle(pixels, {b"labels": [0, 1, 2, 10]}))
    with pytest.raises(
        ValueError, match="has 10 classes, but found labels from 0 to 10"
    ):
        whole("cifar10", tmp_path)
    path.write_bytes(python2_pickle(pixels, {b"labels": [0, 1, 2]}))
    with pytest.raises(ValueError, match="data_batch_3 has 4 images, but 3 labels"):
        whole("cifar10", tmp_path)
