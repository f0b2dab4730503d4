"""Falsify stores in every way that a disk, a backup or a user may, and read them."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import analyzers
from trajstore import open_run
from trajstore.format import arrays
from trajstore.reading.verify import problems

torch = pytest.importorskip("torch")

from tests.trajstore.recording.regression import leave
from tests.trajstore.recording.resumable import SPE, Training
from trajstore.recording.recorder import Recorder

Values = dict[str, npt.NDArray[Any]]
Generator = np.random.Generator

N_STEPS, ROWS = 30, 8

EARLIER: tuple[int, ...] = (9, 14, 21)
"""Steps at which a backup of a store is made."""

SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64, "reference_every": 3}

KINDS: dict[str, dict[str, Any]] = {
    "sketched": {"updates": True, "samples": 16},
    "exact": {"exact": True},
    "without basis": {"basis": 0},
    "resumed": {},
    "journal": {"journal": True},
}


class Store(NamedTuple):
    """A store, and backups of it that were made while it was recorded."""

    kind: str
    path: Path
    backups: tuple[Path, ...]


@contextmanager
def small_chunks() -> Iterator[None]:
    """Let small stores have several chunks in every array, while they are written and read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "MAX_CHUNK_ROWS", ROWS)
        patch.setattr(arrays, "VECTOR_CHUNK", {"int8": 2048, "float32": 2048})
        yield


def record(kind: str, directory: Path) -> Store:
    """Record a small store with several chunks in every array."""
    path, backups = directory / "run.zarr", list[Path]()
    training = Training()
    options = SMALL | {"steps_per_epoch": SPE} | KINDS[kind]
    recorder = Recorder(path, training.model, training.optimizer, **options)

    def each(step: int, recorder: Recorder) -> None:
        if step % 4 == 1 and step > 1 and kind != "journal":
            recorder.measure("same", loss=0.5)
        if step == 10:
            recorder.snapshot("early")
        if step % 5 == 0:
            recorder.flush()
        if options.get("samples"):
            recorder.log_samples(np.arange(step, step + 16))
        if step in EARLIER:
            recorder.flush()
            backup = directory / f"backup{len(backups)}"
            backups.append(shutil.copytree(path, backup))

    if kind == "resumed":
        training.run(recorder, range(12), each)
        torch.save(training.checkpoint(recorder), directory / "state.pt")
        training.run(recorder, range(12, 26), each)
        recorder.flush()
        leave(recorder)
        backups.append(shutil.copytree(path, directory / "discarded"))
        training = Training()
        state = torch.load(directory / "state.pt", weights_only=True)
        training.restore(state)
        options["resume"] = state["recorder"]
        recorder = Recorder(path, training.model, training.optimizer, **options)
        for group in training.optimizer.param_groups:
            group["lr"] *= 0.7
        training.run(recorder, range(12, N_STEPS), each)
    else:
        training.run(recorder, range(N_STEPS), each)
    if kind == "journal":
        leave(recorder)
    else:
        recorder.close()
    return Store(kind, path, tuple(backups))


def files_of(path: Path) -> list[str]:
    """Return the keys of all files in a store."""
    files = (f for f in path.rglob("*") if f.is_file())
    return sorted(str(f.relative_to(path)) for f in files if f.name != ".lock")


def array_of(key: str) -> str:
    return key.partition("/c/")[0] if "/c/" in key else ""


class Damage(NamedTuple):
    """New contents of one file or of several; None deletes a file, and a path is linked."""

    text: str
    files: dict[str, bytes | Path | None]
    as_directory: bool = False


Damaging = Callable[[Store, str, Generator], Damage | None]


def _bytes(change: Callable[[bytearray, Generator], object]) -> Damaging:
    def damage(store: Store, key: str, rng: Generator) -> Damage | None:
        before = (store.path / key).read_bytes()
        data = bytearray(before)
        if not data:
            return None
        change(data, rng)
        return None if data == before else Damage("", {key: bytes(data)})

    return damage


def _below(n: int, rng: Generator) -> int:
    return int(rng.integers(n))


def _flip(data: bytearray, rng: Generator) -> None:
    data[_below(len(data), rng)] ^= 1 << _below(8, rng)


def _digit(data: bytearray, rng: Generator) -> None:
    digits = [i for i, byte in enumerate(data) if chr(byte).isdecimal() and byte < 128]
    if digits:
        data[digits[_below(len(digits), rng)]] = ord("0") + _below(10, rng)


def _byte(data: bytearray, rng: Generator) -> None:
    data[_below(len(data), rng)] = _below(256, rng)


def _zeros(data: bytearray, rng: Generator) -> None:
    start = _below(len(data), rng)
    stop = min(len(data), start + 1 + _below(63, rng))
    data[start:stop] = bytes(stop - start)


def _cut(data: bytearray, rng: Generator) -> None:
    del data[_below(len(data), rng) :]


def _lengthen(data: bytearray, rng: Generator) -> None:
    data += rng.bytes(1 + _below(5000, rng))


def _deleted(_store: Store, key: str, _rng: Generator) -> Damage:
    return Damage("", {key: None})


def _directory(_store: Store, key: str, _rng: Generator) -> Damage:
    return Damage("", {key: None}, as_directory=True)


def _linked(store: Store, key: str, rng: Generator) -> Damage | None:
    files = files_of(store.path)
    return Damage("", {key: store.path / files[rng.integers(len(files))]})


def _copied(is_source: Callable[[str, str], bool]) -> Damaging:
    def damage(store: Store, key: str, rng: Generator) -> Damage | None:
        before = (store.path / key).read_bytes()
        texts = {
            k: (store.path / k).read_bytes()
            for k in files_of(store.path)
            if k != key and is_source(k, key)
        }
        others = [k for k, text in texts.items() if text != before]
        if not others:
            return None
        other = others[rng.integers(len(others))]
        return Damage(f"copy of {other}", {key: texts[other]})

    return damage


def _swapped(store: Store, key: str, rng: Generator) -> Damage | None:
    damage = _copied(_in_same_array)(store, key, rng)
    if damage is None:
        return None
    other = damage.text.removeprefix("copy of ")
    before = (store.path / key).read_bytes()
    return Damage(f"swap with {other}", damage.files | {other: before})


def _in_same_array(other: str, key: str) -> bool:
    return array_of(other) == array_of(key) != ""


def _in_other_array(other: str, key: str) -> bool:
    return "" != array_of(other) != array_of(key)


def _of_any_kind(_other: str, _key: str) -> bool:
    return True


def _earlier(store: Store, key: str, rng: Generator) -> Damage | None:
    before = (store.path / key).read_bytes()
    backups = [b for b in store.backups if (b / key).is_file()]
    backups = [b for b in backups if (b / key).read_bytes() != before]
    if not backups:
        return None
    backup = backups[rng.integers(len(backups))]
    return Damage(f"from {backup.name}", {key: (backup / key).read_bytes()})


def _earlier_array(store: Store, key: str, rng: Generator) -> Damage | None:
    """Restore all files of one array from a backup."""
    parent = array_of(key) or str(Path(key).parent)
    backup = store.backups[rng.integers(len(store.backups))]
    keys = [k for k in files_of(backup) if k.startswith(f"{parent}/")]
    files: dict[str, bytes | Path | None] = {k: (backup / k).read_bytes() for k in keys}
    return Damage(f"array from {backup.name}", files) if keys else None


DAMAGES: dict[str, Damaging] = {
    "bit": _bytes(_flip),
    "digit": _bytes(_digit),
    "byte": _bytes(_byte),
    "zeros": _bytes(_zeros),
    "cut": _bytes(_cut),
    "emptied": _bytes(lambda data, _rng: data.clear()),
    "lengthened": _bytes(_lengthen),
    "deleted": _deleted,
    "directory": _directory,
    "link": _linked,
    "copy within array": _copied(_in_same_array),
    "swap within array": _swapped,
    "copy of other array": _copied(_in_other_array),
    "copy of any file": _copied(_of_any_kind),
    "earlier file": _earlier,
    "earlier array": _earlier_array,
}


@contextmanager
def damaged(store: Store, damage: Damage) -> Iterator[None]:
    """Damage a store for a while."""
    before = {
        key: (store.path / key).read_bytes() if (store.path / key).is_file() else None
        for key in damage.files
    }
    try:
        for key, new in damage.files.items():
            _put(store.path / key, new)
            if damage.as_directory:
                (store.path / key).mkdir()
        yield
    finally:
        for key, old in before.items():
            _put(store.path / key, old)


def _put(file: Path, new: bytes | Path | None) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if isinstance(new, Path):
        file.symlink_to(new)
    elif new is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(new)


class Reading(NamedTuple):
    """Everything that was read and computed, and what readers said about it."""

    values: Values
    words: list[str]  # warnings and errors
    found: list[str]  # problems found by verify


def read(path: Path) -> Reading:
    """Read, analyse and verify a store; every error ends only its own part."""
    values, words = dict[str, Any](), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            run = open_run(path)
        except (OSError, ValueError) as error:
            return Reading({}, [str(error)], [str(error)])
        for name, part in _parts(run).items():
            try:
                values |= {f"{name} {k}": v for k, v in part().items()}
            except (ValueError, KeyError) as error:
                words.append(f"{name}: {error}")
    words += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [str(problem) for problem in problems(run)]
    if run.status == "interrupted":
        words.append("interrupted")
    return Reading(values, words, found)


def _parts(run: Any) -> dict[str, Callable[[], Values]]:
    def of_steps(rows: Any) -> Values:
        return {str(k): np.asarray(v) for k, v in rows.steps.variables.items()}

    def geometry(rows: Any, reference: Any) -> Values:
        result = analyzers.path_geometry(rows, reference=reference)
        loaded = result.compute(scheduler="sync")
        return {str(k): v.values for k, v in loaded.data_vars.items()}

    reference = "final" if run.has_final else 0
    parts: dict[str, Callable[[], Values]] = {
        "steps": partial(of_steps, run),
        "windows": lambda: {str(k): v.values for k, v in run.windows.items()},
        "geometry": partial(geometry, run, reference),
    }
    if run.spec.samples:
        parts["samples"] = lambda: {"": run.samples.values}
    for name in run.snapshots:
        parts[f"geometry at {name}"] = partial(geometry, run, name)
    for name in run.measurements:
        parts[f"measured {name}"] = partial(of_steps, run.measured(name))
        parts[f"geometry of {name}"] = partial(geometry, run.measured(name), reference)
    return parts


class Verdict(NamedTuple):
    """The worst effects of one falsification."""

    silent_wrong: list[
        str
    ]  # names of values that are wrong, without any warning or error
    silent_missing: list[
        str
    ]  # names of values that are NaN, without a warning or an error
    told_wrong: list[str]  # stored values that are wrong, with a warning or an error
    unverified: bool  # whether verify found nothing although a value differs


def judge(found: Reading, clean: Reading) -> Verdict:
    """Compare what was read from a falsified store with what was read from the clean one."""
    # With an earlier root document, the run is as it was then.
    n_steps = [len(x.values.get("steps epoch", ())) for x in (found, clean)]
    is_earlier = "interrupted" in found.words and n_steps[0] < n_steps[1]
    wrong, missing = list[str](), list[str]()
    for name, whole in clean.values.items():
        values, expected = found.values.get(name), whole
        if values is None:
            missing.append(name)
            continue
        if is_earlier and len(values) < len(whole):
            # The last window may have been incomplete then.
            n = len(values) - name.startswith("windows ")
            values, expected = values[:n], whole[:n]
        if values.shape != expected.shape:
            wrong.append(f"{name} (shape)")
            continue
        same = values == expected
        if values.dtype.kind == "f":
            same |= np.isnan(values) & np.isnan(expected)
            lost = np.isnan(values)
        else:
            lost = values == -1 if values.dtype.kind == "i" else np.zeros_like(same)
        if (~same & ~lost).any():
            wrong.append(name)
        if (~same & lost).any():
            missing.append(name)
    new_words = [word for word in found.words if word not in clean.words]
    is_silent = not new_words and not is_earlier
    return Verdict(
        wrong if is_silent else [],
        missing if is_silent else [],
        # Estimates of windows next to a lost anchor are known to change.
        [] if is_silent else [name for name in wrong if "geometry" not in name],
        bool(wrong or missing) and not found.found and not is_earlier,
    )
