"""Large data sets are read from small files in their true layouts."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.data.large.criteo import N_VALUES, criteo
from train.data.large.fastmri import centred_fft, example, fastmri, kept_columns
from train.data.large.ogbg import ogbg
from train.data.large.slimpajama import slimpajama
from train.data.large.wmt import wmt


def click_line(label: int, first: str) -> str:
    numbers = [first, "", "-2", *"123456789", "0"]
    return "\t".join([str(label), *numbers, *(f"{i:08x}" for i in range(26))])


def test_criteo(tmp_path: Path):
    lines = [click_line(i % 2, str(i)) for i in range(5)]
    (tmp_path / "day_0").write_text("\n".join(lines) + "\n")
    (tmp_path / "day_3").write_text(lines[3])  # no newline at the end
    (tmp_path / "day_23").write_text("\n".join(lines[:4]) + "\n")
    splits = criteo("true", str(tmp_path))
    assert len(splits.train) == 6  # type: ignore[arg-type]
    assert [float(splits.train[i][1]) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert splits.validation is not None
    assert [float(y) for _, y in splits.validation] == [0, 1]  # type: ignore[attr-defined]
    inputs, _ = splits.train[5]
    expected = np.log1p([3, 0, 0, *range(1, 10), 0])
    np.testing.assert_allclose(inputs[:13], expected, rtol=1e-6)
    assert float(inputs[13]) == zlib.crc32(b"000000000") % N_VALUES
    assert (inputs[13:] < N_VALUES).all()


def test_criteo_refuses_broken_lines(tmp_path: Path):
    (tmp_path / "day_0").write_text(click_line(0, "1") + "\n1\t2\n")
    splits = criteo("true", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"Line 2 of .*day_0 has 2 fields, expected 40"
    ):
        splits.train[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="none of day_0 to day_22 is in"):
        criteo("true", str(tmp_path / "empty"))


def write_volume(path: Path, images: Any, width: int) -> None:
    h5py = pytest.importorskip("h5py")
    padding = (width - images.shape[2]) // 2
    images = np.pad(images, ((0, 0), (20, 20), (padding, padding)))
    kspace = np.stack([centred_fft(torch.from_numpy(i).cfloat()) for i in images])
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["reconstruction_esc"] = images[:, 20:-20, padding:-padding]


def test_fastmri(tmp_path: Path):
    images = np.random.default_rng(0).random((3, 40, 40), dtype=np.float32)
    write_volume(tmp_path / "singlecoil_train" / "b.h5", images[:2], 60)
    write_volume(tmp_path / "singlecoil_train" / "a.h5", images[2:], 60)
    write_volume(tmp_path / "singlecoil_val" / "c.h5", images[:1], 60)
    splits = fastmri("true", str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (3, 1)  # type: ignore[arg-type]
    inputs, target = splits.train[1]
    assert inputs.shape == target.shape == (1, 40, 40)
    # The columns of a slice are the same in every epoch.
    torch.testing.assert_close(splits.train[1][0], inputs, rtol=0, atol=0)
    np.testing.assert_allclose(inputs.mean(), 0, atol=0.02)
    correlation = np.corrcoef(target.flatten(), images[0].flatten())[0, 1]
    assert correlation == pytest.approx(1, abs=1e-6)


def test_fastmri_with_all_columns_is_the_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.data.large.fastmri.KEPT", 1.0)
    image = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    inputs, target = example(centred_fft(image.cfloat()), image, seed=0)
    torch.testing.assert_close(inputs, target, rtol=1e-4, atol=1e-5)


def test_a_quarter_of_the_columns_is_kept_and_all_central_ones():
    kept = torch.stack([kept_columns(368, seed) for seed in range(200)])
    assert float(kept.mean()) == pytest.approx(0.25, abs=0.005)
    assert kept[:, 170:199].all()


def test_fastmri_refuses_other_volumes(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "singlecoil_train").mkdir()
    with h5py.File(tmp_path / "singlecoil_train" / "a.h5", "w") as file:
        file["kspace"] = np.zeros((1, 15, 8, 8), np.complex64)
        file["reconstruction_rss"] = np.zeros((1, 8, 8))
    with pytest.raises(ValueError, match=r"a\.h5 is no volume of a single coil"):
        fastmri("true", str(tmp_path))


def write_csv(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(",".join(str(cell) for cell in row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()))


def test_ogbg(tmp_path: Path):
    raw, split = tmp_path / "pcba" / "raw", tmp_path / "pcba" / "split" / "scaffold"
    write_csv(raw / "num-node-list.csv.gz", [[2], [3]])
    write_csv(raw / "num-edge-list.csv.gz", [[1], [2]])
    write_csv(raw / "node-feat.csv.gz", [[i] * 9 for i in range(5)])
    write_csv(raw / "edge-feat.csv.gz", [[i] * 3 for i in range(3)])
    write_csv(raw / "edge.csv.gz", [[0, 1], [0, 2], [1, 2]])
    labels = [["0.0"] * 127 + [""], ["1.0"] + [""] * 127]
    write_csv(raw / "graph-label.csv.gz", labels)
    write_csv(split / "train.csv.gz", [[1]])
    write_csv(split / "valid.csv.gz", [[0]])
    splits = ogbg("true", str(tmp_path))
    graph, properties = splits.train[0]
    assert graph.node_features[:, 0].tolist() == [2, 3, 4]
    assert graph.edges.tolist() == [[0, 1, 2, 2], [2, 2, 0, 1]]
    assert graph.edge_features[:, 0].tolist() == [1, 2, 1, 2]
    assert (float(properties[0]), int(properties.isnan().sum())) == (1, 127)
    assert splits.validation is not None
    _, properties = splits.validation[0]
    assert int(properties.isnan().sum()) == 1
    write_csv(raw / "edge.csv.gz", [[0, 1]])
    with pytest.raises(ValueError, match=r"The tables in .* do not fit"):
        ogbg("true", str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keep tables that are made from files out of the user's cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_wmt(tmp_path: Path, hub: Any):
    pytest.importorskip("tokenizers")
    pairs = [{"de": "ein kleines Haus", "en": "a little house"}] * 3
    pairs[1] = {"de": "nein " * 300, "en": "no"}
    for split, rows in (("train", pairs), ("validation", pairs[:1])):
        table = hub.Dataset.from_dict({"translation": rows})
        (tmp_path / "data" / "de-en").mkdir(parents=True, exist_ok=True)
        table.to_parquet(
            tmp_path / "data" / "de-en" / f"{split}-00000-of-00001.parquet"
        )
    for _ in range(2):  # the second time with the tokens of the first
        splits = wmt("true", str(tmp_path / "data"))
        pair, target = splits.train[0]
        assert (pair.shape, target.shape) == ((2, 256), (256,))
        torch.testing.assert_close(pair[1], target)
        tokenizer_file = json.loads((tmp_path / "data" / "tokenizer.json").read_text())
        words = {i: word for word, i in tokenizer_file["model"]["vocab"].items()}
        end = target.tolist().index(1)
        text = "".join(words[i] for i in target[:end].tolist()).replace("Ġ", " ")
        assert text == "a little house"
        assert not target[end + 1 :].any()
        assert int(splits.train[1][0][0, 255]) == 1  # a long sentence is cut
    assert splits.n_classes == 32_000


def test_slimpajama(tmp_path: Path, hub: Any):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "data" / "train" / "chunk1"
    folder.mkdir(parents=True)
    rows = [
        {"text": "one two", "meta": {"set": "a"}},
        {"text": "two", "meta": {"set": "b"}},
    ]
    (folder / "example_train_0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    del hub
    words = {"one": 0, "two": 1, "<|endoftext|>": 2}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(words, unk_token="one")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "data" / "tokenizer.json"))
    for _ in range(2):  # the second time from the kept tokens
        splits = slimpajama("true", str(tmp_path / "data"), context=2, n_tokens=5)
        assert [[part.tolist() for part in splits.train[i]] for i in range(2)] == [
            [[0, 1], [1, 2]],
            [[2, 1], [1, 2]],
        ]
        assert len(splits.train) == 2  # type: ignore[arg-type]
    (tmp_path / "data" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        slimpajama("true", str(tmp_path / "data"), context=2, n_tokens=4)


@pytest.mark.parametrize(
    "load",
    [criteo, fastmri, ogbg, wmt, lambda *a: slimpajama(*a, context=8, n_tokens=9)],
)
def test_without_a_directory_the_message_says_what_to_do(load: Any, hub: Any):
    del hub
    with pytest.raises((FileNotFoundError, ValueError), match="--data embedded"):
        load("true", None)


@pytest.mark.parametrize("load", [criteo, fastmri, ogbg, wmt])
def test_stand_ins_are_pairs(load: Any):
    splits = load("embedded", None)
    assert splits.validation is not None
    for part in (splits.train, splits.validation):
        inputs, target = part[len(part) - 1]
        assert len(inputs) > 0
        assert torch.isfinite(target).any()
