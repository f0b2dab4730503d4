"""Fashion-MNIST is read from its original files, wherever they are usually kept."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.data.fashion_mnist import MEAN, STD, fashion_mnist


def idx(array: Any) -> bytes:
    """Return an array in IDX format: the type, the number of dimensions, lengths, elements."""
    lengths = struct.pack(f">{array.ndim}I", *array.shape)
    return b"".join([bytes([0, 0, 8, array.ndim]), lengths, array.tobytes()])


def write(folder: Path, kind: str = "packed", n: int = 6, side: int = 28) -> Any:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    content = []
    for prefix, size in (("train", n), ("t10k", n // 2)):
        images = rng.integers(0, 256, (size, side, side), dtype=np.uint8)
        labels = rng.integers(0, 10, size).astype(np.uint8)
        for name, array in (
            (f"{prefix}-images-idx3-ubyte", images),
            (f"{prefix}-labels-idx1-ubyte", labels),
        ):
            if kind != "packed":
                (folder / name).write_bytes(idx(array))
            if kind != "unpacked":
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        content.append((images, labels))
    return content


@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("kind", ["packed", "unpacked", "both"])
def test_files_are_read_from_every_layout(tmp_path: Path, place: str, kind: str):
    content = write(tmp_path / place, kind)
    splits = fashion_mnist("true", str(tmp_path))
    assert splits.n_classes == 10
    for split, (images, labels) in zip(splits[:2], content, strict=True):
        assert split is not None
        assert len(split) == len(labels)  # type: ignore[arg-type]
        for i, expected in enumerate(labels):
            image, label = split[i]
            assert image.shape == (1, 28, 28)
            assert int(label) == expected
            found = (image[0] * STD + MEAN) * 255
            np.testing.assert_allclose(found, images[i], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            b"no gzip",
            "cannot be unpacked .*Not a gzipped",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(b"x" * 99)[:20],
            "cannot be unpacked",
        ),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b""),
            "not an array .* or is truncated",
        ),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b"\0\0\x08\x03\0\0"),
            "not an array .* or is truncated",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.zeros(6, np.uint8))[:-1]),
            "not an array of bytes in IDX format, or is truncated; download it again",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(b"\0\0\x0d\x01" + bytes(10)),
            "not an array of bytes in IDX format",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.zeros(5, np.uint8))),
            r"has train images of the shape \(6, 28, 28\) and labels of the shape \(5,\)",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.zeros((6, 1), np.uint8))),
            r"images of the shape \(6, 28, 28\) and labels of the shape \(6, 1\)",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.full(3, 10, np.uint8))),
            "Fashion-MNIST has 10 classes, but found labels from 10 to 10",
        ),
    ],
    ids=[
        "not packed",
        "cut off",
        "empty",
        "short header",
        "short array",
        "wrong type",
        "fewer labels",
        "shape of labels",
        "classes",
    ],
)
def test_damage_is_reported_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
):
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        fashion_mnist("true", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused(tmp_path: Path):
    write(tmp_path, side=27)
    with pytest.raises(
        ValueError, match=r"\(6, 27, 27\).*expected 28 x 28 pixels for each"
    ):
        fashion_mnist("true", str(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte is missing"):
        fashion_mnist("true", str(tmp_path))
