"""Make hostile stores and results, and open each of them in a process of its own.

``python hostile_stores.py RUN FOLDER FIRST EVERY`` prints a JSON line for every EVERY-th case: its
name, the outcome of each call, the peak of the memory, and everything it touched outside.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import dask
import numpy as np

SECONDS: Final = 60

Damage = Callable[[Path, Path], None]
"""Changes a folder with ``run.zarr`` and ``run.analysis.zarr``; the other folder is outside."""


class Bomb:
    """Creates a directory when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


class Case(NamedTuple):
    name: str
    damage: Damage


PLACES: Final = [
    *("run.zarr/zarr.json", "run.zarr/tables", "run.zarr/tables/zarr.json"),
    *("run.zarr/signs/c/0", "run.zarr/references", "run.zarr/final/c/0"),
    *("run.zarr/.journal", "run.zarr/.writer", "run.zarr/.lock", "run.zarr/checks"),
    *("run.zarr/scalars/c", "run.zarr/snapshots", "run.zarr/measurements"),
    *("run.analysis.zarr", "run.analysis.zarr/zarr.json", "run.analysis.zarr/final"),
    *("run.analysis.zarr/final/zarr.json", "run.analysis.zarr/final/gamma"),
    *("run.analysis.zarr/final/gamma/zarr.json", "run.analysis.zarr/final/gamma/c/0"),
    *("run.analysis.zarr/final/progress", "run.analysis.zarr/.lock-final"),
    "run.figures",
]


def replace(place: str, kind: str, folder: Path, outside: Path) -> None:
    """Replace a file or directory by something that leads out, blocks, or is of another kind."""
    path = folder / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "file link":
            path.symlink_to(outside / "secret")
        case "folder link":
            path.symlink_to(outside / "folder")
        case "relative link":
            path.symlink_to(os.path.relpath(outside / "folder", path.parent))
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            # The path of a socket may have at most 108 bytes.
            before = Path.cwd()
            os.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
            os.chdir(before)
        case "folder":
            path.mkdir()
            (path / "inner").write_bytes(b"x")
        case "zeros":
            path.write_bytes(bytes(900_000))


KINDS: Final = [
    *("file link", "folder link", "relative link", "loop", "pipe", "socket"),
    *("folder", "zeros"),
]

DEEP: Final = 100_000

TEXTS: Final = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "nan": b"NaN",
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "closed deep list": b"[" * DEEP + b"]" * DEEP,
    "huge integer": b'{"zarr_format": ' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"zarr_format": 1e999999999}',
    "half a character": b'{"zarr_format": "\\ud800"}',
    "no text": bytes(range(256)),
    "utf-16": '{"zarr_format": 3}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"zarr_format": 3}',
    "duplicate keys": b'{"zarr_format": 3, "zarr_format": 2, "node_type": "group"}',
    "version 2": b'{"zarr_format": 2}',
    "many keys": b"{" + b",".join(b'"%d":%d' % (i, i) for i in range(60_000)) + b"}",
}

DOCUMENTS: Final = [
    *("run.zarr/zarr.json", "run.zarr/tables/zarr.json"),
    "run.zarr/references/zarr.json",
    *("run.analysis.zarr/zarr.json", "run.analysis.zarr/final/zarr.json"),
    *("run.analysis.zarr/final/gamma/zarr.json",),
]


def write(place: str, text: bytes, folder: Path, _outside: Path) -> None:
    (folder / place).write_bytes(text)


FIELDS: Final[list[tuple[str, Any]]] = [
    ("shape", [1 << 62]),
    ("shape", [1 << 40, 1 << 20]),
    ("shape", [-1]),
    ("shape", [10**30]),
    ("shape", []),
    ("data_type", "object"),
    ("data_type", "string"),
    ("data_type", {"name": "null_terminated_bytes", "configuration": {"length_bytes": 1 << 40}}),
    ("data_type", "variable_length_bytes"),
    ("data_type", "complex128"),
    ("data_type", {"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 1}}),
    ("fill_value", "NaN"),
    ("fill_value", "0xffffffffffffffff"),
    ("fill_value", {"a": 1}),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1 << 50]}}),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
    ("chunk_grid", {"name": "rectilinear", "configuration": {}}),
    ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "/../"}}),
    ("codecs", [{"name": "numcodecs.pickle"}]),
    ("codecs", [{"name": "pickle"}]),
    ("codecs", [{"name": "vlen-utf8"}]),
    ("codecs", [{"name": "vlen-bytes"}, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}]),
    ("codecs", [{"name": "numcodecs.json2"}, {"name": "numcodecs.zlib"}]),
    ("codecs", [{"name": "gzip", "configuration": {"level": 9}}]),
    ("codecs", []),
    ("codecs", [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1], "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}], "index_location": "start"}}]),
    ("storage_transformers", [{"name": "os.system"}]),
    ("dimension_names", ["../x"]),
    ("attributes", {"a" * 100_000: "b" * 800_000}),
    ("node_type", "group"),
    ("zarr_format", 2),
]  # fmt: skip


def change(place: str, key: str, value: Any, folder: Path, _outside: Path) -> None:
    """Change a field of a document."""
    path = folder / place
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {key: value}))


ROOT: Final[list[tuple[str, Any]]] = [
    ("spec/names", ["../../outside/secret"]),
    ("spec/names", ["a" * 900_000]),
    ("spec/shapes", [[1 << 62]]),
    ("spec/shapes", [[1 << 31, 1 << 31], [1], [1], [1]]),
    ("spec/shapes", [[0], [0], [0], [0]]),
    ("spec/shapes", [[40, 20], [40], [3, 40], [-3]]),
    ("spec/sketch_bits", 1 << 60),
    ("spec/sketch_bits", 7),
    ("spec/basis", 60),
    ("spec/basis", -1),
    ("spec/probes", 1 << 50),
    ("spec/seed", 10**400),
    ("spec/samples", 1 << 50),
    ("spec/steps_per_epoch", 0),
    ("spec/reference_every", -5),
    ("spec/total_steps", 1 << 62),
    ("spec/exact", True),
    ("spec/steps_per_epoch", float("nan")),
    ("n_steps", 1 << 60),
    ("n_steps", -1),
    ("n_steps", 10**12),
    ("n_steps", 1e300),
    ("snapshots", {"../x": {"array": "../../outside/secret", "step": 0}}),
    ("snapshots", {"x": {"array": "/etc/passwd", "step": 0}}),
    ("measurements", {"x": {"group": "../outside", "n_rows": 5, "metrics": []}}),
    ("measurements", {f"m{i}": {} for i in range(20_000)}),
    ("metrics", ["loss"] * 50_000),
    ("metrics", ["../../loss"]),
    ("resumes", [{"step": 1 << 60, "n_missing": 1 << 60}]),
    ("resumes", [{}] * 100_000),
    ("status", "\x1b[2J"),
    ("created", "x" * 900_000),
    ("created", "../../outside"),
    ("checks", "A" * 900_000),
    ("checks", {"levels": 1 << 60}),
    ("starts", [1 << 62] * 1000),
    ("format_version", 10**9),
    ("attrs", {"a" * 400_000: ["b" * 400_000]}),
]


def reseal(key: str, value: Any, folder: Path, _outside: Path) -> None:
    """Change the root document of a run, with a valid checksum."""
    from trajstore.format import checks

    path = folder / "run.zarr/zarr.json"
    document = json.loads(path.read_text())
    attributes = document["attributes"]
    attributes.pop("checksum", None)
    *parents, last = key.split("/")
    inner = attributes
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_bytes(checks.seal(document))


CHUNKS: Final = [
    *("run.zarr/signs/c/0/0", "run.zarr/tables/c/0/0/0", "run.zarr/scalars/c/0/0"),
    *("run.zarr/references/keyframes/c/0/0", "run.zarr/references/codes/c/0/0"),
    *("run.zarr/final/c/0", "run.analysis.zarr/final/gamma/c/0"),
]


def contents(outside: Path) -> dict[str, bytes]:
    """Return chunks that claim to be large, or that run code when they are unpickled."""
    blosc = bytes([2, 1, 0x21, 8])
    sizes = np.array([0xFFFFFFF0, 1 << 20, 200], "<u4").tobytes()
    zstd = bytes.fromhex("28b52ffd") + bytes([0xE0]) + (1 << 50).to_bytes(8, "little")
    return {
        "blosc bomb": blosc + sizes + bytes(200),
        "blosc zero block": blosc
        + np.array([512, 0, 200], "<u4").tobytes()
        + bytes(200),
        "zstd bomb": zstd + bytes(100),
        "zlib bomb": zlib.compress(bytes(200_000_000), 9),
        "pickle": pickle.dumps(Bomb(str(outside / "code was run"))),
        "long": bytes(1 << 20),
        "nothing": b"",
    }


def chunk(place: str, kind: str, folder: Path, outside: Path) -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents(outside)[kind])


def version_2(place: str, codec: str, folder: Path, outside: Path) -> None:
    """Replace an array by one of Zarr's version 2, with object codecs."""
    path = folder / place
    shutil.rmtree(path)
    path.mkdir()
    document: dict[str, Any] = {
        "zarr_format": 2,
        "shape": [60],
        "chunks": [60],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "filters": [{"id": codec}],
        "compressor": {"id": "pickle", "protocol": 5} if codec != "pickle" else None,
    }
    (path / ".zarray").write_text(json.dumps(document))
    (path / "0").write_bytes(pickle.dumps(Bomb(str(outside / "code was run"))))
    (path.parent / ".zgroup").write_text('{"zarr_format": 2}')
    if codec == "only version 2":
        (path.parent / "zarr.json").unlink(missing_ok=True)


def journal(kind: str, folder: Path, outside: Path) -> None:
    """Write a journal that claims much, or holds nothing."""
    path = folder / "run.zarr/.journal"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    texts = {**contents(outside), **TEXTS}
    for name in ("header.json", "header", "steps", "0", "0.rows", "rows", "../x"):
        if "/" not in name:
            (path / name).write_bytes(texts[kind])


def cases() -> list[Case]:
    """Return all cases, shuffled, so that every tenth is a fair sample."""
    found = [
        Case(f"{place} is a {kind}", partial(replace, place, kind))
        for place in PLACES
        for kind in KINDS
    ]
    found += [
        Case(f"{place} holds {kind}", partial(write, place, text))
        for place in DOCUMENTS
        for kind, text in TEXTS.items()
    ]
    found += [
        Case(f"{place}: {key} = {str(value)[:60]}", partial(change, place, key, value))
        for place in (
            "run.zarr/tables/zarr.json",
            "run.analysis.zarr/final/gamma/zarr.json",
        )
        for key, value in FIELDS
    ]
    found += [
        Case(f"root: {key} = {str(value)[:60]}", partial(reseal, key, value))
        for key, value in ROOT
    ]
    kinds = contents(Path())
    found += [
        Case(f"{place} holds {kind}", partial(chunk, place, kind))
        for place in CHUNKS
        for kind in kinds
    ]
    found += [
        Case(f"{place} of version 2 with {codec}", partial(version_2, place, codec))
        for place in (
            "run.zarr/tables",
            "run.analysis.zarr/final/gamma",
            "run.analysis.zarr/final/progress",
        )
        for codec in ("pickle", "vlen-utf8", "json2", "msgpack2", "only version 2")
    ]
    found += [
        Case(f"journal of {kind}", partial(journal, kind)) for kind in [*kinds, *TEXTS]
    ]
    random.Random(0).shuffle(found)
    return found


def calls(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield everything that a user may do with a store."""
    import torch
    from torch import nn

    import analyzers
    from analyzers import plots
    from analyzers._reporting import figures_directory, save_figure
    from trajstore import Recorder, open_run
    from trajstore.cli.stores import info, verify
    from trajstore.store.journal import recover

    path = str(folder / "run.zarr")

    def geometry() -> None:
        run = open_run(path)
        found = analyzers.store_geometry(run).load()
        # Without a link there, drawing is the same in every case, and slow.
        if (folder / "run.figures").is_symlink():
            figure = plots.path_geometry(analyzers.epoch_means(found))
            save_figure(figure, figures_directory(run) / "final.png")

    def resume() -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options: dict[str, Any] = {"sketch_bits": 1024, "probes": 256}
        options |= {"steps_per_epoch": 12, "total_steps": 60}
        with Recorder(path, model, optimizer, resume=True, step=30, **options):
            model(torch.ones(2, 20)).sum().backward()
            optimizer.step()

    yield "open", lambda: repr(open_run(path))
    yield "steps", lambda: open_run(path).steps.load()  # noqa: PLW0108
    yield "info", partial(info, path)
    yield "verify", partial(verify, path)
    yield "geometry", geometry
    yield "recover", partial(recover, path)
    yield "resume", resume


def memory_peak() -> float:
    """Return the peak of this process's memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def examine(folder: Path, outside: Path, out: int) -> None:
    """Call everything on a hostile store, in a forked process; write what happened."""
    touched: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree", "os.system", "pickle.find_class", "subprocess.Popen"}:  # fmt: skip
            target = str(arguments[0]) if arguments else ""
            if str(outside) in target or event in {"os.system", "subprocess.Popen"}:
                touched.append(f"{event} {target}")

    sys.addaudithook(watch)
    Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    outcomes = {}
    for name, call in calls(folder):
        try:
            signal.alarm(SECONDS)
            call()
            outcomes[name] = "done"
        except SystemExit:
            outcomes[name] = "problems"
        except (
            ValueError,
            KeyError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            outcomes[name] = f"{type(error).__name__}: {str(error)[:200]}"
        except BaseException:  # noqa: BLE001
            outcomes[name] = "CRASH " + traceback.format_exc()[-1500:]
        finally:
            signal.alarm(0)
    result = {"outcomes": outcomes, "touched": touched, "peak": memory_peak()}
    os.write(out, json.dumps(result).encode())


def snapshot(outside: Path) -> dict[str, Any]:
    return {
        str(p.relative_to(outside)): p.read_bytes() if p.is_file() else None
        for p in sorted(outside.rglob("*"))
    }


def main(source: Path, work: Path, first: int, every: int) -> None:
    """Examine every `every`-th case, and print a line for each."""
    import matplotlib as mpl

    mpl.use("agg")
    # Everything is loaded and compiled once, before processes are forked.
    dask.config.set(scheduler="synchronous")
    for name in ("run.zarr", "run.analysis.zarr"):
        shutil.copytree(source.with_name(name), work / "intact" / name)
    with contextlib.redirect_stdout(sys.stderr):
        for _, call in calls(work / "intact"):
            call()
    chosen = cases()[first::every]
    for number, case in enumerate(chosen):
        folder, outside = work / f"{number}" / "in", work / f"{number}" / "outside"
        folder.mkdir(parents=True)
        (outside / "folder").mkdir(parents=True)
        (outside / "folder" / "thesis").write_text("kept")
        (outside / "folder" / "zarr.json").write_text("{}")
        (outside / "secret").write_text("secret")
        for name in ("run.zarr", "run.analysis.zarr"):
            shutil.copytree(source.with_name(name), folder / name)
        case.damage(folder, outside)
        before = snapshot(outside)
        read, write_end = os.pipe()
        if (child := os.fork()) == 0:
            os.close(read)
            examine(folder, outside, write_end)
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        result = (
            json.loads(text) if text else {"outcomes": {}, "touched": [], "peak": 0}
        )
        result |= {"case": case.name, "status": status}
        result["changed"] = snapshot(outside) != before
        print(json.dumps(result), flush=True)
        shutil.rmtree(work / f"{number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
