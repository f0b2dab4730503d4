"""Load data sets from Hugging Face's hub, its cache, or local files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Source(NamedTuple):
    """Location of a data set on the hub, and its contents."""

    title: str  # name of the data set in messages
    repository: str  # owner and name on the hub
    config: str | None  # variant of the data set, if the repository has several
    columns: tuple[str, ...]  # names of the columns that every table must have
    files: str  # description of the files in a local directory, for messages


def load_tables(source: Source, directory: str | None) -> Mapping[str, Any]:
    """Load the tables of a data set by split, with Hugging Face's ``datasets``."""
    # A directory holds files in the hub's layout, or one folder for each class, or a cache
    # (of ``huggingface_hub`` or ``datasets``). Without a directory, the tables come from the
    # user's own cache or from the hub.
    datasets = _hugging_face(source)
    if directory is not None and not Path(directory).is_dir():
        raise FileNotFoundError(_advice(source, f"there is no directory {directory}"))
    try:
        # Progress bars that last seconds would hide the progress bar of the training run.
        with _hidden_progress_bars(datasets):
            tables = _load(datasets, source, directory)
    except (ConnectionError, FileNotFoundError) as error:
        where = directory or "the cache, and the hub cannot be reached"
        raise FileNotFoundError(_advice(source, f"it is not in {where}")) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(
            f"{source.title} in {directory or source.repository} cannot be read "
            f"({reason}); download it again."
        ) from error
    for split, table in tables.items():
        missing = set(source.columns) - set(table.column_names)
        if missing:
            raise ValueError(
                f"{directory or source.repository} is not {source.title}: its split "
                f"{split!r} has the columns {table.column_names}, expected "
                f"{list(source.columns)}."
            )
    return dict(tables)


def _hugging_face(source: Source) -> Any:
    """Import ``datasets`` late: the import takes seconds, and embedded data do not need it."""
    try:
        import datasets  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{source.title} is read with Hugging Face's datasets, which is not installed. "
            'Use --data embedded, or run\npip install "trajstore[data]"'
        ) from error
    return datasets


def _load(datasets: Any, source: Source, directory: str | None) -> Any:
    """Load the tables from the hub, a cache, or local files."""
    if directory is None:
        return datasets.load_dataset(source.repository, source.config)
    root = Path(directory)
    owner, name = source.repository.split("/")
    if (root / f"{owner}___{name}").is_dir():
        return datasets.load_dataset(
            source.repository, source.config, cache_dir=directory
        )
    snapshots = (root / f"datasets--{owner}--{name}" / "snapshots").glob("*")
    root = max(snapshots, key=lambda path: path.stat().st_mtime, default=root)
    if source.config is not None and (root / source.config).is_dir():
        # The repository holds several data sets, each in its own directory.
        root /= source.config
    return datasets.load_dataset(str(root))


def read_labels(table: Any, column: str, n_classes: int, title: str) -> Tensor:
    """Return the labels in a table, int64 (example,), from 0 to ``n_classes - 1``."""
    labels = torch.tensor(table[column][:], dtype=torch.int64)
    declared = getattr(table.features[column], "num_classes", n_classes)
    if declared != n_classes:
        raise ValueError(f"{title} has {n_classes} classes, but found {declared}.")
    check_labels(labels, n_classes, title)
    return labels


def check_labels(labels: Tensor, n_classes: int, title: str) -> None:
    """Refuse labels that are not between 0 and ``n_classes - 1``."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(
            f"{title} has {n_classes} classes, but found labels from {low} to {high}."
        )


def decode_image(table: Any, index: int, column: str, title: str) -> Any:
    """Decode one image of a table as an RGB `PIL.Image.Image`."""
    try:
        return table[index][column].convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"Image {index} of {title} cannot be decoded ({error}); download it again."
        ) from error


def get_split(tables: Mapping[str, Any], name: str, title: str) -> Any:
    """Return the table of one split."""
    if name not in tables:
        raise ValueError(
            f"{title} has no split {name!r}, only {sorted(tables)}; download it again."
        )
    return tables[name]


def _advice(source: Source, problem: str) -> str:
    return (
        f"{source.title}: {problem}. Download {source.repository} from huggingface.co, and "
        f"pass the directory with {source.files} as --data-dir; or use --data embedded."
    )


@contextmanager
def _hidden_progress_bars(datasets: Any) -> Iterator[None]:
    """Hide the progress bars of ``datasets``."""
    was_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()
