"""Test ``analyzers.path_geometry``."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

import analyzers
import trajstore
from trajstore.reading.run import Run

torch = pytest.importorskip("torch")

from train.protocols.two_run import two_run

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")

Train = Callable[..., Any]
Vector = npt.NDArray[np.float32]


def fail_if_computed(*_args: object, **_kwargs: object) -> None:
    """A Dask scheduler for asserting laziness."""
    pytest.fail("computed while building the graph")


def z_scores(result: xr.Dataset, truth: xr.Dataset, name: str) -> xr.DataArray:
    return (result[name] - truth[name]) / result[f"{name}_stderr"]


def slow_geometry(run: Run, target: Vector, *, layers: bool) -> xr.Dataset:
    """The definitions, in float64, from the gradients and iterates of an exact run."""
    rows = []
    gradients, displacements = (
        run.stored.array("gradient")[:],
        run.stored.array("displacement")[:],
    )
    windows = run.stored.array("window")[:]
    for k in range(run.n_steps):
        reference = run.stored.anchors.decode(
            int(windows[k]), slice(0, run.layout.size)
        )
        x = reference.astype(np.float64) + displacements[k]
        d = run.layout.unflatten(x - target)
        g = run.layout.unflatten(gradients[k].astype(np.float64))
        rows.append(
            [[(g[n] * d[n]).sum(), (d[n] ** 2).sum(), (g[n] ** 2).sum()] for n in d]
        )
    h, d_sq, g_sq = np.moveaxis(np.array(rows), -1, 0)
    if not layers:
        h, d_sq, g_sq = h.sum(1), d_sq.sum(1), g_sq.sum(1)
    # A snapshot is an iterate: nothing is asked of the step that finds it.
    d_sq = np.where(d_sq > 0, d_sq, np.nan)
    values = {
        "gamma": h / np.sqrt(g_sq * d_sq),
        "rsi": h / d_sq,
        "eb": np.sqrt(g_sq / d_sq),
        "lolr": h / g_sq,
        "distance": np.sqrt(d_sq),
    }
    dims = ["step", "layer"] if layers else ["step"]
    return xr.Dataset({name: (dims, value) for name, value in values.items()})


def by_hand(
    observe: Train,
    *,
    shape: tuple[int, int] = (60, 40),
    n_steps: int = 48,
    steps_per_epoch: int = 12,
    spoil: Callable[[int, Any], None] = lambda _step, _gradient: None,
    heal: bool = True,
) -> None:
    """Descend on a noisy quadratic; `spoil` changes the gradients that are recorded.

    With `heal` the step itself uses zeros for what is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    def clean(*_: object) -> None:
        for p in model.parameters():
            torch.nan_to_num_(p.grad, nan=0.0, posinf=0.0)

    with observe(
        model, optimizer, steps_per_epoch=steps_per_epoch, total_steps=n_steps or None
    ):
        # Hooks run in the order in which they came: whoever observes, sees the NaN.
        handle = optimizer.register_step_pre_hook(clean if heal else lambda *_: None)
        for step in range(n_steps):
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=generator)
                p.grad = 0.2 * p.detach() + noise
                spoil(step, p.grad)
            optimizer.step()
        handle.remove()


def recorded(path: Path, train: Train, **options: Any) -> Run:
    from trajstore import Recorder

    train(partial(Recorder, path, **options))
    return trajstore.open_run(path)


@pytest.fixture(scope="module", params=[3, 0], ids="basis={}".format)
def sketched(
    request: pytest.FixtureRequest,
    example_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
    train_small: Train,
) -> Run:
    """The same training, recorded with a basis and without."""
    if request.param == 3:
        return trajstore.open_run(example_run)
    path = tmp_path_factory.mktemp("sketched") / "run.zarr"
    return recorded(path, train_small, sketch_bits=1024, probes=256, basis=0)


@pytest.fixture(scope="module")
def exact(exact_run: Path) -> Run:
    return trajstore.open_run(exact_run)


@pytest.fixture(scope="module")
def geometry(sketched: Run) -> xr.Dataset:
    return analyzers.path_geometry(sketched).compute()


@pytest.fixture(scope="module")
def by_layer(sketched: Run) -> xr.Dataset:
    return analyzers.path_geometry(sketched, layers=True).compute()


@pytest.fixture(scope="module")
def truth(train_small: Train) -> xr.Dataset:
    return two_run(train_small)


@pytest.fixture(scope="module")
def truth_by_layer(train_small: Train) -> xr.Dataset:
    return two_run(train_small, layers=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, train_small: Train) -> Run:
    """A run that starts at the same point, learns more slowly and ends elsewhere."""
    from trajstore import Recorder

    path = tmp_path_factory.mktemp("other") / "slow.zarr"

    def observe(model: Any, optimizer: Any, **options: Any) -> Any:
        optimizer.param_groups[0]["lr"] = 0.02
        return Recorder(path, model, optimizer, sketch_bits=256, probes=64, **options)

    train_small(observe)
    return trajstore.open_run(path)


# What one training gives, against the exact protocol


@pytest.mark.parametrize("name", ["gamma", "rsi", "lolr"])
def test_errors_are_as_large_as_the_standard_errors_say(
    geometry: xr.Dataset, truth: xr.Dataset, name: str
):
    z = z_scores(geometry, truth, name)
    # 60 steps: the standard deviation of z has a standard error of 0.09; three of them.
    assert 0.72 < float(z.std()) < 1.28
    # Beyond 4.5 lies 1 in 150 000 normal numbers.
    assert float(abs(z).max()) < 4.5


@pytest.mark.parametrize("name", ["gamma", "rsi", "lolr"])
def test_estimates_are_unbiased(geometry: xr.Dataset, truth: xr.Dataset, name: str):
    error = (geometry[name] - truth[name]).mean()
    of_mean = np.sqrt((geometry[f"{name}_stderr"] ** 2).sum()) / geometry.sizes["step"]
    assert abs(float(error)) < 3.5 * float(of_mean)


@pytest.mark.parametrize("name", ["distance", "eb"])
def test_distances_are_within_a_few_percent(
    geometry: xr.Dataset, truth: xr.Dataset, name: str
):
    # 256 probes instead of 1024: twice the 1 % of mid-run, and of the 4 % next to x*.
    np.testing.assert_allclose(geometry[name], truth[name], rtol=0.08)
    relative = abs(geometry[name] / truth[name] - 1)
    assert float(relative.median()) < 0.02


@pytest.mark.parametrize("reference", ["final", 2, 3, "middle"])
def test_errors_of_distances_are_as_large_as_the_standard_errors_say(
    sketched: Run, exact: Run, reference: Any
):
    result = analyzers.path_geometry(sketched, reference=reference).compute()
    expected = analyzers.path_geometry(exact, reference=reference).compute()
    error = result.distance - expected.distance
    # Rounding comes on top: near x* the distance is a difference of large numbers.
    allowed = 5 * result.distance_stderr + 1e-5 * float(expected.distance.max())
    away = expected.distance > 1e-3
    assert int(away.sum()) >= 58
    assert (abs(error) < allowed).where(away, True).all()


def test_distance_is_exact_where_windows_begin_at_an_iterate(
    geometry: xr.Dataset, truth: xr.Dataset
):
    """At step 0 the reference is the iterate itself."""
    assert float(geometry.distance_stderr[0]) < 1e-6
    # float32 numbers of order 1.
    np.testing.assert_allclose(geometry.distance[0], truth.distance[0], rtol=1e-6)


def test_layers_add_up_to_the_whole(geometry: xr.Dataset, by_layer: xr.Dataset):
    """<g, x - x*> of the tensors, from loLR |g|^2 and EB = |g| / distance."""
    numerator = by_layer.lolr * (by_layer.eb * by_layer.distance) ** 2
    whole = geometry.lolr * (geometry.eb * geometry.distance) ** 2
    # The same sums in float32, of a few thousand terms in another order.
    np.testing.assert_allclose(numerator.sum("layer"), whole, rtol=1e-4, atol=1e-6)
    # Tensor by tensor the probes do not see the same as together.
    together = np.sqrt((by_layer.distance**2).sum("layer"))
    np.testing.assert_allclose(together, geometry.distance, rtol=0.05)


def test_tensors_of_fewer_elements_than_the_basis_are_exact(
    example_run: Path, truth_by_layer: xr.Dataset
):
    """What is left of three numbers beside three directions is nothing."""
    run = trajstore.open_run(example_run)
    by_layer = analyzers.path_geometry(run, layers=True)
    # From the sixth window on, when no direction is short any more. Single precision,
    # times coefficients of up to 20.
    late = slice(24, None)
    np.testing.assert_allclose(
        by_layer.gamma.sel(layer="2.bias")[late],
        truth_by_layer.gamma.sel(layer="2.bias")[late],
        atol=1e-4,
    )


@pytest.mark.parametrize("layer", ["0.weight", "0.bias", "2.weight"])
def test_errors_of_layers_are_of_the_order_of_their_standard_errors(
    by_layer: xr.Dataset, truth_by_layer: xr.Dataset, layer: str
):
    z = z_scores(by_layer, truth_by_layer, "gamma").sel(layer=layer)
    # With the padding of these small tensors they share a few buckets of the fold, while
    # the standard error takes all buckets for equal.
    assert 0.7 < float(z.std()) < 2.5
    assert abs(float(z.mean())) < 3.5 * float(z.std()) / np.sqrt(z.size)


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_weight_decay_is_that_of_whole_vectors(
    example_run: Path, exact: Run, layers: bool
):
    run = trajstore.open_run(example_run)
    options: dict[str, Any] = {"weight_decay": 0.05, "layers": layers}
    result = analyzers.path_geometry(run, **options).compute()
    expected = analyzers.path_geometry(exact, **options).compute()
    without = analyzers.path_geometry(exact, layers=layers).compute()
    # Large enough to be seen, and of a length that is known.
    assert float(abs(expected.gamma - without.gamma).median()) > 0.01
    np.testing.assert_allclose(
        result.eb * result.distance, expected.eb * expected.distance, rtol=1e-4
    )
    z = z_scores(result, expected, "gamma")
    # 60 steps, as above; the first tensor is the largest.
    assert 0.7 < float(z.isel(layer=0).std() if layers else z.std()) < 1.3


def test_weight_decay_without_a_basis_needs_whole_vectors(
    tmp_path: Path, train_small: Train, exact: Run
):
    path = tmp_path / "sketched.zarr"
    run = recorded(path, train_small, sketch_bits=256, probes=64, basis=0)
    with pytest.raises(
        ValueError,
        match=r"^Weight decay in the gradient needs .*sketched\.zarr does not have: it "
        r"was recorded with basis=0; record with basis=1 or more\.$",
    ):
        analyzers.path_geometry(run, weight_decay=0.05)
    whole = recorded(tmp_path / "exact.zarr", train_small, exact=True, basis=0)
    found = analyzers.path_geometry(whole, weight_decay=0.05).compute()
    expected = analyzers.path_geometry(exact, weight_decay=0.05).compute()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_standard_error_without_a_basis_is_that_of_all_of_v(
    tmp_path: Path, train_small: Train, exact: Run
):
    """The formula of `docs/estimator.md`, bucket by bucket, with v in the place of v'."""
    path = tmp_path / "run.zarr"
    run = recorded(path, train_small, sketch_bits=256, probes=64, basis=0)
    geometry = analyzers.path_geometry(run).compute()
    layout, width = run.layout, run.stored.sketch.fold.width
    whole, n_rows = slice(0, run.layout.size), run.stored.sketch.fold.n_rows

    def fold(squares: Any) -> Any:
        padded = np.zeros(n_rows * width)
        padded[: len(squares)] = squares
        return padded.reshape(n_rows, width)

    for step in (0, 13, 40, 57):
        window = int(run.stored.array("window")[step])
        v = run.stored.array("final")[:].astype(np.float64) - run.stored.anchors.decode(
            window, whole
        )
        weights = run.windows.weights.values[window].astype(np.float64)
        gradient = exact.stored.array("gradient")[step].astype(np.float64)
        G_sq, u_sq = np.zeros(layout.size), np.zeros(layout.size)
        for offset, size, w in zip(layout.offsets, layout.sizes, weights, strict=True):
            part = slice(int(offset), int(offset + size))
            # Even within a tensor, as far as is known.
            G_sq[part] = w**2 * (gradient[part] ** 2).mean()
            u_sq[part] = v[part] ** 2 / w**2
        g, u = fold(G_sq), fold(u_sq)
        variance = (g.sum(0) * u.sum(0)).sum() - (g * u).sum()
        variance += (np.pi / 2 - 1) / 256 * g.sum() * u.sum()
        lolr_stderr = np.sqrt(variance) / (gradient**2).sum()
        np.testing.assert_allclose(geometry.lolr_stderr[step], lolr_stderr, rtol=1e-4)


# The exact mode


@pytest.mark.parametrize("name", QUANTITIES)
def test_exact_run_equals_the_two_run_protocol(
    exact: Run, truth: xr.Dataset, name: str
):
    result = analyzers.path_geometry(exact).compute()
    # Gradients are the same bits; x - x* is rounded to float32 twice.
    np.testing.assert_allclose(result[name], truth[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[f"{name}_stderr"], 0)


@pytest.mark.parametrize("name", QUANTITIES)
def test_exact_run_equals_the_two_run_protocol_by_layer(
    exact: Run, truth_by_layer: xr.Dataset, name: str
):
    result = analyzers.path_geometry(exact, layers=True).compute()
    assert result.layer.values.tolist() == truth_by_layer.layer.values.tolist()
    np.testing.assert_allclose(result[name], truth_by_layer[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[f"{name}_stderr"], 0)


def test_coordinates_are_those_of_the_protocol(geometry: xr.Dataset, truth: xr.Dataset):
    for name in ("step", "epoch", "iteration"):
        np.testing.assert_array_equal(geometry[name], truth[name])


# Any reference

REFERENCES = ["final", "epoch", "snapshot", "mapping", "other run", "tensors"]


def choose(kind: str, run: Run, other: Run) -> tuple[Any, Vector]:
    """Something to give as reference, and the vector that it means."""
    whole = slice(0, run.layout.size)
    match kind:
        case "final":
            return "final", run.stored.array("final")[:]
        case "epoch":
            return 2, run.stored.anchors.decode(run.stored.epoch_windows[2], whole)
        case "snapshot":
            snapshot = run.stored.document.snapshots["middle"].array
            return "middle", run.stored.array(snapshot)[:]
        case "other run":
            return other, other.stored.array("final")[:]
    between = (run.stored.array("final")[:] + other.stored.array("final")[:]) / 2
    named: dict[str, Any] = dict(run.layout.unflatten(between))
    if kind == "tensors":
        named = {name: torch.from_numpy(value) for name, value in named.items()}
        named["running_mean"] = torch.zeros(3)
    return named, between


@pytest.mark.parametrize("kind", REFERENCES)
def test_any_reference_of_an_exact_run(exact: Run, other: Run, kind: str):
    reference, vector = choose(kind, exact, other)
    for layers in (False, True):
        result = analyzers.path_geometry(exact, reference=reference, layers=layers)
        expected = slow_geometry(exact, vector, layers=layers)
        for name in QUANTITIES:
            # x - x* is a difference of float32 vectors of norm 1, here as small as 0.1;
            # the snapshot is an iterate, and there the distance is 0.
            away = expected.distance > 1e-3
            np.testing.assert_allclose(
                result[name].where(away),
                expected[name].where(away),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("kind", REFERENCES)
def test_any_reference_of_a_sketched_run(
    sketched: Run, exact: Run, other: Run, kind: str
):
    reference, vector = choose(kind, sketched, other)
    result = analyzers.path_geometry(sketched, reference=reference).compute()
    expected = slow_geometry(exact, vector, layers=False)
    # Next to x* nothing is left to estimate, and rounding is all there is.
    estimated = result.gamma_stderr > 1e-5
    z = z_scores(result, expected, "gamma").where(estimated, drop=True)
    assert z.size > 20
    # At least 21 independent numbers: three standard errors of their deviation.
    assert 0.5 < float(z.std()) < 1.5
    assert abs(float(z.mean())) < 3.5 / np.sqrt(z.size)
    assert float(abs(z).max()) < 4.5
    np.testing.assert_allclose(
        result.gamma.where(~estimated, drop=True),
        expected.gamma.where(~estimated, drop=True),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
        )
        if kind == "epoch"
        else kind
        for kind in REFERENCES
    ],
)
def test_distances_from_any_reference_are_within_a_few_percent(
    sketched: Run, exact: Run, other: Run, kind: str
):
    reference, vector = choose(kind, sketched, other)
    result = analyzers.path_geometry(sketched, reference=reference)
    expected = slow_geometry(exact, vector, layers=False)
    away = expected.distance > 1e-3
    relative = abs(result.distance / expected.distance - 1).where(away, drop=True)
    # 256 probes: 6 % is what one direction of them is worth.
    assert float(relative.max()) < 3 * 0.06


def test_nothing_is_estimated_where_the_reference_lies_in_the_basis(
    example_run: Path, exact: Run
):
    """The window that begins at x*, and those one and two later."""
    sketched = trajstore.open_run(example_run)
    window = sketched.stored.epoch_windows[2]
    vector = sketched.stored.anchors.decode(window, slice(0, sketched.layout.size))
    result = analyzers.path_geometry(sketched, reference=2)
    expected = slow_geometry(exact, vector, layers=False)
    start = int(sketched.windows.start[window])
    stop = int(sketched.windows.stop[window + 2])
    steps = slice(start, stop)
    # The step at x* itself is 0/0 but for what the code of the reference loses.
    np.testing.assert_allclose(
        result.gamma[steps][1:], expected.gamma[steps][1:], atol=2e-5
    )
    np.testing.assert_allclose(
        result.distance[steps][1:], expected.distance[steps][1:], rtol=2e-5
    )


@pytest.mark.parametrize(
    ("kind", "label", "note"),
    [
        ("final", "final", "last iterate"),
        ("epoch", "epoch 2", "lossy code"),
        ("snapshot", "snapshot middle", "before step 27"),
        ("mapping", "given", "given by the caller"),
        ("other run", "final of slow.zarr", "last iterate of slow.zarr"),
    ],
)
def test_result_tells_what_it_is_measured_against(
    sketched: Run, other: Run, kind: str, label: str, note: str
):
    reference, _ = choose(kind, sketched, other)
    attributes = analyzers.path_geometry(sketched, reference=reference).attrs
    assert attributes["reference"] == label
    assert note in attributes["reference_note"]


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("warm", KeyError, r"No snapshot 'warm' in .*it has \['middle'\]"),
        (7, KeyError, r"start of epoch 7 .* epochs: 0-4"),
        (True, TypeError, "an epoch, another run or a mapping.*got bool"),
        ({}, ValueError, r"4 of 4 differ:\n0.weight: missing"),
    ],
    ids=["no such snapshot", "no such epoch", "bool", "empty mapping"],
)
def test_unusable_reference_is_refused(
    sketched: Run, reference: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        analyzers.path_geometry(sketched, reference=reference)


# What the result is


def test_attributes_define_the_variables(geometry: xr.Dataset):
    assert geometry.gamma.attrs == {
        "long_name": "cosine of gradient and x - x*",
        "definition": "<g, x - x*> / (|g| |x - x*|)",
        "units": "1",
    }
    assert geometry.rsi.attrs["definition"] == "<g, x - x*> / |x - x*|^2"
    assert geometry.eb.attrs["definition"] == "|g| / |x - x*|"
    assert geometry.lolr.attrs["definition"] == "<g, x - x*> / |g|^2"
    assert geometry.distance.attrs["definition"] == "|x - x*|"
    assert geometry.gamma_stderr.attrs["long_name"] == "standard error of gamma"
    assert {v.attrs["units"] for v in geometry.data_vars.values()} == {"1"}
    assert "arXiv 2306.11922" in geometry.attrs["source"]
    assert geometry.attrs["status"] == "complete"


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
@pytest.mark.parametrize("mode", ["example_run", "exact_run"])
def test_building_the_graph_computes_nothing(
    request: pytest.FixtureRequest, mode: str, layers: bool
):
    run = trajstore.open_run(request.getfixturevalue(mode))
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.path_geometry(run, layers=layers)
        assert all(v.chunks is not None for v in lazy.data_vars.values())
    computed = lazy.compute()
    for name, variable in lazy.data_vars.items():
        assert variable.dtype == computed[name].dtype == np.float64
        assert variable.shape == computed[name].shape
        assert np.isfinite(computed[name]).all()


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"sketch_bits": 256, "probes": 64}, False),
        ({"sketch_bits": 256, "probes": 64}, True),
        ({"exact": True}, False),
    ],
    ids=["sketched", "sketched, layers", "exact"],
)
def test_result_does_not_depend_on_chunks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    layers: bool,
):
    train = partial(by_hand, n_steps=16, steps_per_epoch=16)
    run = recorded(tmp_path / "run.zarr", train, **options)
    expected = analyzers.path_geometry(run, layers=layers).compute()
    for module, constant, value in (
        # Two steps, eight rows of the fold, two blocks of parameters; four results.
        ("_engine.project", "STEP_BYTES", 2 * 4 * 256),
        ("_engine.project", "FOLD_ROWS", 3),
        ("_engine.exact", "READ_BYTES", 2 * 4 * 2048),
        ("_engine.tasks", "PART", 2048),
        ("_engine.tasks", "ROW_PART", 2048),
        ("_engine.walk", "READ_ELEMENTS", 1024),
        ("_engine.slices", "SEGMENT", 100),
        ("geometry.path_geometry", "RESULT_ROWS", (4, 5)),
    ):
        monkeypatch.setattr(sys.modules[f"analyzers.{module}"], constant, value)
    result = analyzers.path_geometry(run, layers=layers)
    assert result.gamma.chunks[0] == (4,) * 4
    for name, variable in expected.data_vars.items():
        # Where next to nothing is left beside the basis, it is a difference of large
        # numbers, and so is its standard error.
        np.testing.assert_allclose(result[name], variable, rtol=1e-4, atol=1e-6)


def test_tasks_can_be_sent_to_other_processes(sketched: Run, geometry: xr.Dataset):
    mapping = sketched.layout.unflatten(sketched.stored.array("final")[:])
    lazy = analyzers.path_geometry(sketched, reference=mapping)
    result = pickle.loads(pickle.dumps(lazy)).compute()
    xr.testing.assert_equal(result, geometry)


def test_analysis_needs_no_torch(sketched: Run, geometry: xr.Dataset):
    code = f"""
import sys
import analyzers, analyzers.cli, trajstore
run = trajstore.open_run({sketched.location!r})
print(float(analyzers.path_geometry(run).gamma.sum()), "torch" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    total, torch_is_there = run.stdout.split()
    assert float(total) == pytest.approx(float(geometry.gamma.sum()), rel=1e-6)
    assert torch_is_there == "False"


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_round_trip_through_zarr(
    sketched: Run,
    geometry: xr.Dataset,
    by_layer: xr.Dataset,
    tmp_path: Path,
    layers: bool,
):
    result = analyzers.path_geometry(sketched, layers=layers)
    result.to_zarr(tmp_path / "result.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "result.zarr", consolidated=False)
    xr.testing.assert_identical(
        trajstore.index_epochs(stored.compute()), by_layer if layers else geometry
    )


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_round_trip_through_netcdf(
    sketched: Run,
    geometry: xr.Dataset,
    by_layer: xr.Dataset,
    tmp_path: Path,
    layers: bool,
):
    pytest.importorskip("h5py")
    result = analyzers.path_geometry(sketched, layers=layers)
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as stored:
        indexed = trajstore.index_epochs(stored.load())
        xr.testing.assert_identical(indexed, by_layer if layers else geometry)


# Runs that went wrong, or hardly began


def spoil_one_step(value: float, at: int = 17) -> Callable[[int, Any], None]:
    def spoil(step: int, gradient: Any) -> None:
        if step == at:
            gradient.view(-1)[3] = value

    return spoil


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        pytest.param(
            np.inf,
        ),
    ],
    ids=["nan", "inf"],
)
@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_gradient_that_is_not_finite_spoils_its_step_only(
    tmp_path: Path, mode: str, value: float
):
    train = partial(by_hand, spoil=spoil_one_step(value))
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run).compute()
    truth = two_run(train)
    others = np.arange(48) != 17
    for name in ("gamma", "rsi", "lolr", "gamma_stderr", "rsi_stderr", "lolr_stderr"):
        assert np.isnan(result[name][17])
        assert np.isfinite(result[name][others]).all()
    if mode == "exact":
        np.testing.assert_allclose(result.gamma[others], truth.gamma[others], atol=1e-6)
    else:
        z = z_scores(result, truth, "gamma")[others]
        # 47 steps: three standard errors of the deviation.
        assert 0.69 < float(z.std()) < 1.31
        # No worse than the same run without the accident.
        healthy = recorded(tmp_path / "healthy.zarr", by_hand, **options)
        undisturbed = analyzers.path_geometry(healthy).compute()
        np.testing.assert_array_less(
            result.gamma_stderr[others], 1.5 * undisturbed.gamma_stderr[others]
        )
    assert int(analyzers.epoch_means(result).n_missing.sum()) == 1


# NaN is not equal to NaN.
@pytest.mark.filterwarnings("ignore:The parameters have changed")
@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_steps_before_the_parameters_became_nan_can_be_measured(
    tmp_path: Path, mode: str
):
    train = partial(by_hand, spoil=spoil_one_step(np.nan), heal=False)
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run, reference=0).compute()
    # The step with the NaN gradient is itself still at finite parameters.
    assert np.isfinite(result.distance[:18]).all()
    assert np.isfinite(result.gamma[1:17]).all()
    for name in ("gamma", "gamma_stderr", "rsi", "eb", "lolr"):
        assert np.isnan(result[name][17:]).all()
    assert np.isnan(result.distance[18:]).all()
    against_end = analyzers.path_geometry(run).compute()
    assert np.isnan(against_end.gamma).all()


@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_step_with_zero_gradient_has_no_direction(tmp_path: Path, mode: str):
    def spoil(step: int, gradient: Any) -> None:
        if step == 17:
            gradient.zero_()

    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", partial(by_hand, spoil=spoil), **options)
    result = analyzers.path_geometry(run).compute()
    for name in ("gamma", "gamma_stderr", "lolr", "lolr_stderr"):
        assert np.flatnonzero(np.isnan(result[name])).tolist() == [17]
    for name in ("rsi", "rsi_stderr", "eb", "eb_stderr"):
        assert float(result[name][17]) == 0
        assert np.isfinite(result[name]).all()
    assert float(result.distance[17]) > 0


@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_one_step_of_gradient_descent_goes_along_the_gradient(
    tmp_path: Path, mode: str
):
    """x_0 - x_1 = lr g, hence gamma = 1, loLR = lr and RSI = 1 / lr."""
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    train = partial(by_hand, n_steps=1)
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run).compute()
    for name, expected in {"gamma": 1, "lolr": 0.1, "rsi": 10, "eb": 10}.items():
        # float32, but for what was estimated.
        tolerance = 1e-5 * expected + 4 * float(result[f"{name}_stderr"][0])
        assert abs(float(result[name][0]) - expected) < tolerance
    assert float(result.distance_stderr[0]) < 1e-6
    assert float(result.gamma_stderr[0]) < 0.15


def test_run_without_steps_is_refused(tmp_path: Path):
    run = recorded(tmp_path / "run.zarr", partial(by_hand, n_steps=0))
    with pytest.raises(ValueError, match=r"run\.zarr holds no steps yet"):
        analyzers.path_geometry(run)


def test_crashed_run_is_measured_up_to_where_it_came(tmp_path: Path):
    def crash(step: int, _gradient: Any) -> None:
        if step == 30:
            raise RuntimeError("out of memory")

    path = tmp_path / "run.zarr"
    with pytest.raises(RuntimeError, match="out of memory"):
        recorded(path, partial(by_hand, spoil=crash), sketch_bits=256, probes=256)
    result = analyzers.path_geometry(trajstore.open_run(path)).compute()
    assert result.attrs["status"] == "failed"
    # The same steps, from a run that was to end there.
    truth = two_run(partial(by_hand, n_steps=30))
    z = z_scores(result, truth, "gamma")
    assert z.size == 30
    # Three standard errors of the deviation of 30 numbers.
    assert 0.6 < float(z.std()) < 1.4


def test_run_that_still_goes_on_is_measured_against_what_there_is(tmp_path: Path):
    results = []

    @contextmanager
    def observe(*args: Any, **options: Any) -> Iterator[Any]:
        from trajstore import Recorder

        path = tmp_path / "run.zarr"
        with Recorder(path, *args, sketch_bits=256, probes=256, **options) as recorder:
            yield recorder
            # Steps are done, but nobody has said so yet.
            recorder.flush()
            run = trajstore.open_run(path)
            with pytest.raises(
                ValueError,
                match=r"no final iterate: its status is 'running'.*reference=3",
            ):
                analyzers.path_geometry(run)
            results.append(analyzers.path_geometry(run, reference=3).compute())
            recorder.snapshot("end")

    by_hand(observe)
    [early] = results
    closed = trajstore.open_run(tmp_path / "run.zarr")
    late = analyzers.path_geometry(closed, reference=3).compute()
    assert early.attrs["status"] == "running"
    # Only the last window, whose end is known now, has more to go by.
    before = slice(0, int(closed.windows.start[-1]))
    np.testing.assert_allclose(early.gamma[before], late.gamma[before], rtol=1e-10)
    np.testing.assert_allclose(early.distance, late.distance, rtol=0.05)


# Gradients that do not look like noise

HEAVY = [0, 3, 64, 65, 300, 511]


@pytest.mark.slow
def test_errors_are_known_where_a_few_columns_have_most_of_the_energy(tmp_path: Path):
    """As in layers whose inputs differ in size: 6 of 512 columns, 92 % of the energy."""

    def spoil(_step: int, gradient: Any) -> None:
        if gradient.ndim == 2:
            gradient[:, HEAVY] *= 32

    train = partial(
        by_hand, shape=(64, 512), n_steps=200, steps_per_epoch=50, spoil=spoil
    )
    run = recorded(tmp_path / "run.zarr", train, sketch_bits=1024, probes=256)
    assert run.stored.sketch.fold.n_rows > 16
    result = analyzers.path_geometry(run).compute()
    truth = two_run(train)
    for name in ("gamma", "lolr"):
        z = z_scores(result, truth, name)
        # 200 steps: the deviation is known to 0.05; the bounds are six of that, for
        # what is read off the sketches is not known exactly either.
        assert 0.7 < float(z.std()) < 1.3
        assert abs(float(z.mean())) < 3.5 / np.sqrt(z.size)
