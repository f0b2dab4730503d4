"""Open a store as a run: lazy datasets of its steps, and what was recorded about it."""

import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, Final

import numpy as np
import xarray as xr

from trajstore.format.arrays import (
    DESCRIPTIONS,
    LAYER,
    SAMPLES,
    STEP,
    UPDATE_TABLE,
    table_columns,
)
from trajstore.format.document import RowGroup
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.scaled_tables import EXPONENTS
from trajstore.reading.chunk_checks import LiveChecks
from trajstore.reading.epochs import index_epochs
from trajstore.reading.lazy_rows import lazy_rows
from trajstore.reading.run_html import run_html
from trajstore.reading.stored_rows import StoredRows
from trajstore.reading.version import StoreVersion, version_of, view_at
from trajstore.store.location import locate
from trajstore.store.lock import is_written
from trajstore.store.opening import OpenedStore, open_checked

REOPENED: Final = 4
"""Number of runs that a process keeps open after other processes sent them."""


@dataclass(frozen=True, slots=False, eq=False)
class Run:
    """A recorded run, as of the moment it was opened.

    Open one with `open_run`; `refresh` opens it again, to see what has been recorded since.

    Attributes
    ----------
    stored : StoredRows
        Reader of the stored arrays. It serves analyses and is not a stable interface.
    """

    stored: StoredRows

    def __repr__(self) -> str:
        if self.group.is_measurement:
            return (
                f"<trajstore.Run {self.location!r}, measurement {self.group.name!r}: "
                f"{self.n_steps} rows>"
            )
        return (
            f"<trajstore.Run {self.location!r}: {self.n_steps} steps, "
            f"{self.layout.n_params} parameters, {self.status}>"
        )

    def _repr_html_(self) -> str:
        return run_html(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers open the store again, so only a few hundred bytes are pickled.
        version = version_of(self.stored.document, is_written=self.stored.is_written)
        name = self.group.name if self.group.is_measurement else None
        return _reopen, (self.location, version, name)

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.stored.location

    @property
    def spec(self) -> RunSpec:
        """Specification of the run: everything known when recording began."""
        return self.stored.document.spec

    @property
    def layout(self) -> Layout:
        """Names, shapes and offsets of the parameter tensors in flat vectors."""
        return self.stored.document.layout

    @property
    def group(self) -> RowGroup:
        """The group of rows that `steps` returns: the optimizer steps, or one measurement.

        ``group.name`` is the name of the measurement, empty for the steps.
        """
        return self.stored.group

    @property
    def status(self) -> str:
        """How the run ended: ``running``, ``complete``, ``failed`` or ``interrupted``.

        A run has failed if it was closed after an exception. It was interrupted if no
        process is writing to the store although the run was not closed. The status is
        ``unknown`` if the run was not closed, and the lock of its writer cannot be tested
        because files cannot be read or locked.
        """
        status = self.stored.document.status
        if status != "running" or self.stored.is_written:
            return status
        return "unknown" if self.stored.is_written is None else "interrupted"

    @property
    def n_steps(self) -> int:
        """Number of recorded optimizer steps, or of rows of a measurement."""
        return self.stored.n_rows

    @property
    def n_epochs(self) -> int:
        """Number of epochs that have started."""
        return int(self.stored.epochs[-1]) + 1 if self.n_steps else 0

    @property
    def n_windows(self) -> int:
        """Number of windows, each with an anchor."""
        return self.stored.n_windows

    @property
    def has_final(self) -> bool:
        """Whether the run was closed, so that its last iterate is stored."""
        return self.stored.document.has_final

    @property
    def metrics(self) -> list[str]:
        """Names of the recorded scalars."""
        hidden = EXPONENTS if self.stored.has_exponents else ()
        return [name for name in self.group.metrics if name not in hidden]

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the stored snapshots."""
        return tuple(self.stored.document.snapshots)

    @property
    def attrs(self) -> dict[str, Any]:
        """User metadata passed to ``Recorder(attrs=...)``."""
        return dict(self.stored.document.attrs)

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of the measurements, see `measured`."""
        return tuple(self.stored.document.measurements)

    def measured(self, name: str) -> "Run":
        """Return the rows of a measurement as a run.

        Parameters
        ----------
        name : str
            Name given to `trajstore.Recorder.measure`, or ``"update"`` for the updates
            x_(k+1) - x_k, which the returned run has in place of gradients.

        Returns
        -------
        Run
            A run whose steps are the rows of the measurement; analyses accept it like any
            other run. Rows that were measured before the same optimizer step have the same
            ``step``, ``epoch`` and ``iteration``.

        Raises
        ------
        KeyError
            If there is no such measurement; the message lists the existing ones.
        """
        if name not in self.measurements:
            raise KeyError(
                f"No measurement {name!r} in {self.location}; it has "
                f"{list(self.measurements)}. Record it with recorder.measure(name) during "
                "training, or 'update' with Recorder(..., updates=True)."
            )
        return Run(replace(self.stored, group=self.stored.document.measurements[name]))

    def refresh(self) -> "Run":
        """Open the store again, with everything committed by now.

        Returns
        -------
        Run
            The run, or the same measurement of it; this object stays as it is. If another
            recording has taken the place of this one, that recording.

        Raises
        ------
        FileNotFoundError, SchemaError
            In the cases that `open_run` lists.
        KeyError
            If this is a measurement that the recording at this place does not have.

        Examples
        --------
        >>> import trajstore
        >>> run = trajstore.open_run(example_run)
        >>> run.refresh().n_steps
        60
        """
        opened = open_run(self.location)
        return opened.measured(self.group.name) if self.group.is_measurement else opened

    @cached_property
    def steps(self) -> xr.Dataset:
        """Scalars and tables of every step.

        Returns
        -------
        xarray.Dataset
            Lazy: values are read when they are used. The dimension ``step`` has the
            coordinates ``step``, ``epoch``, ``iteration`` and ``window``; the first three
            select steps (`trajstore.index_epochs`). Each scalar is a float64 variable, NaN
            where it was not logged. Tables are float32 variables with the additional
            dimension ``layer``, labelled with parameter names; some also have ``basis``.
            They are float64 in runs with float64 parameters, and in runs with products that
            float32 cannot hold, such as squares of gradients of 1e-30.
            Values are NaN where a chunk is damaged, with one warning for each chunk. A run
            recorded with ``basis=0`` lacks ``param_norm``, ``param_sq``,
            ``grad_dot_param``, ``grad_dot_basis`` and ``displacement_dot_basis``; a
            measurement lacks ``update_norm``, ``update_sq`` and
            ``update_dot_displacement``.
        """
        stored = xr.Dataset(
            {
                name: (
                    self.stored.document.arrays[self.stored.path(name)].spec.dims,
                    lazy_rows(self.stored, name),
                )
                for name in ("window", "scalars", "tables")
            }
        )
        variables = {
            name: stored["scalars"].isel(
                metric=self.group.metrics.index(name), drop=True
            )
            for name in self.metrics
        }
        for name, columns in table_columns(self.spec).items():
            if columns.start == columns.stop:
                continue
            table = stored["tables"].isel(quantity=columns)
            variables[name] = (
                table.rename(quantity="basis")
                if name.endswith("_basis")
                else table.isel(quantity=0, drop=True)
            )
        for name, variable in variables.items():
            long_name, units = DESCRIPTIONS.get(name, (name, "1"))
            variable.attrs = {"long_name": long_name, "units": units}
        coordinates = self._step_coordinates() | {
            LAYER: list(self.spec.names),
            "window": stored["window"].variable,
        }
        dataset = xr.Dataset(variables).assign_coords(coordinates)
        dataset = dataset.assign_attrs(status=self.status, location=self.location)
        if self.group.is_measurement:
            absent = [*UPDATE_TABLE, "update_norm"]
            dataset = dataset.drop_vars(absent, errors="ignore")
        return index_epochs(dataset)

    @cached_property
    def samples(self) -> xr.DataArray:
        """Indices of the examples in the batch of every step.

        Returns
        -------
        xarray.DataArray
            Lazy: values are read when they are used. An int64 array with the dimensions
            ``step`` and ``sample`` and the coordinates ``epoch``, ``iteration`` and
            ``step``. Values are -1 where a batch has fewer examples, where no indices were
            logged, and where a chunk is damaged.

        Raises
        ------
        ValueError
            If the indices were not recorded, or if this run is a measurement.
        """
        if self.group.is_measurement:
            raise ValueError(
                f"The measurement {self.group.name!r} of {self.location} has no indices "
                "of examples; `samples` of the run itself has them for every step."
            )
        if SAMPLES not in self.stored.document.arrays:
            raise ValueError(
                f"The indices of examples are not recorded in {self.location}; record "
                "with Recorder(..., samples=batch_size) and "
                "recorder.log_samples(indices)."
            )
        rows = xr.Variable((STEP, "sample"), lazy_rows(self.stored, SAMPLES))
        return index_epochs(xr.Dataset({SAMPLES: rows}, self._step_coordinates()))[
            SAMPLES
        ]

    def _step_coordinates(self) -> dict[str, Any]:
        return {
            STEP: self.stored.step_numbers,
            "epoch": (STEP, self.stored.epochs),
            "iteration": (STEP, self.stored.iterations),
        }

    @cached_property
    def windows(self) -> xr.Dataset:
        """Steps, sketch weights and anchor probes of every window.

        Returns
        -------
        xarray.Dataset
            Loaded. ``start`` is the first optimizer step of a window and ``stop`` the step
            after its last; for a measurement, both are row numbers. ``weights``
            (window, layer) are the weights of the sketch, and ``probes`` (window, probe)
            the probes of the anchor; both are NaN where a chunk is damaged.

        Raises
        ------
        SchemaError
            If the first steps of windows are lost, or are not valid step numbers.
        """
        start, every = self.stored.starts, slice(0, self.n_windows)
        stop = np.minimum(np.append(start[1:], self.n_steps), self.n_steps)
        weights = self.stored.read("references/weights", every).values
        probes = self.stored.read("references/probes", every).values
        return xr.Dataset(
            {
                "start": ("window", start),
                "stop": ("window", np.maximum(stop, start)),
                "weights": (("window", LAYER), weights),
                "probes": (("window", "probe"), probes),
            },
            coords={"window": np.arange(len(start)), LAYER: list(self.spec.names)},
        )


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a trajectory store for reading, even while it is being written.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store, or its URL: for example ``s3://bucket/run.zarr``.

    Returns
    -------
    Run
        The run, with everything committed so far.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    SchemaError
        If `path` is not a trajectory store, has another format version, or lacks parts;
        the message lists all problems.
    """
    location = locate(path)
    # Look for a writer before reading the status: a run that is closed in between must not
    # look interrupted.
    written = is_written(location)
    return _run(location, open_checked(location), is_written=written)


def _run(location: str, opened: OpenedStore, *, is_written: bool | None) -> Run:
    store, document = opened
    live = LiveChecks(location, store, document)
    return Run(StoredRows(location, store, document, document.steps, is_written, live))


_reopening = Lock()


def _reopen(location: str, version: StoreVersion, measurement: str | None) -> Run:
    """Open a run that was pickled in another process; equal runs are opened only once."""
    with _reopening:
        run = _reopened(location, version)
    return run if measurement is None else run.measured(measurement)


@lru_cache(maxsize=REOPENED)
def _reopened(location: str, version: StoreVersion) -> Run:
    opened = view_at(location, open_checked(location), version)
    return _run(location, opened, is_written=version.is_written)
