"""Penn Treebank is read from Mikolov's files, and another text is refused."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from train.data.penn_treebank import penn_treebank
from train.data.words import python_documentation, sequences, vocabulary, word_splits

TRAIN = " aer banknote <unk> N \n pierre <unk> N years old \n"
VALID = " consumers may N years \n"


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ptb.train.txt").write_text(TRAIN)
    (folder / "ptb.valid.txt").write_text(VALID)
    (folder / "ptb.test.txt").write_text(VALID)


@pytest.mark.parametrize("place", [".", "data", "simple-examples/data"])
def test_words_are_read_from_every_layout(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / place)
    monkeypatch.setattr("train.data.penn_treebank.N_WORDS", 8)
    splits = penn_treebank("true", str(tmp_path), context=5)
    words = ["<unk>", "<eos>", "N", "aer", "banknote", "old", "pierre", "years"]
    assert splits.n_classes == len(words)
    inputs, targets = splits.train.tensors  # type: ignore[attr-defined]
    assert [words[i] for i in inputs.flatten()] == [
        *("aer", "banknote", "<unk>", "N", "<eos>"),
        *("pierre", "<unk>", "N", "years", "old"),
    ]
    assert [words[i] for i in targets[1]] == ["<unk>", "N", "years", "old", "<eos>"]
    # Words that are not in the training text are unknown.
    assert len(splits.validation) == 0  # type: ignore[arg-type]
    validation = penn_treebank("true", str(tmp_path), context=2).validation
    assert [words[i] for i in validation.tensors[0].flatten()] == [  # type: ignore[union-attr]
        *("<unk>", "<unk>", "N", "years")
    ]


@pytest.mark.parametrize("place", ["nowhere", "empty", None])
def test_missing_data_say_what_to_do(tmp_path: Path, place: str | None):
    (tmp_path / "empty").mkdir()
    directory = None if place is None else str(tmp_path / place)
    with pytest.raises(FileNotFoundError, match=r"ptb\.train\.txt.*--data embedded"):
        penn_treebank("true", directory, context=5)


def test_truncated_or_different_texts_are_refused(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"has 10000 words, but found 8 in .*download"):
        penn_treebank("true", str(tmp_path), context=5)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"ptb\.valid\.txt is missing; .* belong"
    ):
        penn_treebank("true", str(tmp_path), context=5)
    (tmp_path / "ptb.train.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        penn_treebank("true", str(tmp_path), context=5)


def test_the_stand_in_is_pythons_documentation():
    splits = penn_treebank("embedded", None, context=35)
    assert 1000 < splits.n_classes < 10_000
    inputs, targets = splits.train.tensors  # type: ignore[attr-defined]
    assert inputs.shape[1] == 35
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert len(splits.validation) > 30  # type: ignore[arg-type]


def test_words_that_are_frequent_enough_are_known():
    lines = ["a b a", "", "c a b"]
    numbers = {"<unk>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4}
    assert vocabulary(lines, 1) == numbers
    assert vocabulary(lines, 2) == {k: v for k, v in numbers.items() if k != "c"}
    inputs, targets = sequences(lines, vocabulary(lines, 2), 3).tensors
    assert inputs.tolist() == [[2, 3, 2], [1, 0, 2]]
    assert targets.tolist() == [[3, 2, 1], [0, 2, 3]]


def test_a_text_without_a_sequence_has_none():
    train, _ = python_documentation()
    splits = word_splits(train[:400], ["word"], context=9, min_frequency=1)
    assert len(splits.validation) == 0  # type: ignore[arg-type]
