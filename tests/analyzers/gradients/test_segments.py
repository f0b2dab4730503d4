"""Test ``analyzers.zigzag_segments`` on quadratics whose path is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
import trajstore
from tests.analyzers.quadratic import descend, iterates
from trajstore.reading.run import Run

pytest.importorskip("torch")

# Learning rates with which a single mode is smooth, zigzags, and is smooth again.
RATES = [0.05] * 30 + [1.45] * 40 + [0.05] * 20
EIGENVALUES = [1.0, 0.7, 1.3]
KINDS = ("zigzag", "neither", "smooth")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("quadratic") / "run.zarr"
    return descend(path, RATES, EIGENVALUES)


def expected_labels(threshold: float) -> Any:
    """Label steps by plain loops over float64 iterates."""
    gradients = iterates(EIGENVALUES, RATES) * EIGENVALUES
    norms = np.linalg.norm(gradients, axis=1)
    cosine = (gradients[1:] * gradients[:-1]).sum(1) / norms[1:] / norms[:-1]
    cosine = np.append(np.nan, cosine)
    labels = []
    for k in range(len(RATES)):
        median = np.nanmedian(cosine[max(0, k - 5) : k + 6])
        labels.append(-1 if median < -threshold else 1 if median > threshold else 0)
    return np.array(labels)


def test_labels_are_those_of_the_criterion(run: Run):
    found = analyzers.zigzag_segments(run, smoothing=1)
    labels = expected_labels(0.5)
    np.testing.assert_array_equal(found.label, labels)
    assert (labels[40:60] == -1).all()
    assert (labels[:20] == 1).all()
    for start, stop, kind in zip(
        found.start.values, found.stop.values, found.segment_label.values, strict=True
    ):
        assert (labels[start:stop] == kind).all()
    np.testing.assert_array_equal(found.start[1:], found.stop[:-1])
    np.testing.assert_array_equal(
        found.step_share, [(labels == kind).mean() for kind in (-1, 0, 1)]
    )


def test_shares_are_those_of_the_path(run: Run):
    found = analyzers.zigzag_segments(run, smoothing=1)
    x, labels = iterates(EIGENVALUES, [*RATES, 0.0]), found.label.values
    steps = np.diff(x, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    losses = (x**2 * EIGENVALUES).sum(1) / 2
    whole = steps[:-1].sum(0)
    for kind, name in zip((-1, 0, 1), KINDS, strict=True):
        of_kind, is_kind = found.sel(kind=name), labels == kind
        path = lengths[is_kind].sum() / lengths.sum()
        assert float(of_kind.path_share) == pytest.approx(path, rel=1e-5)
        before_end = is_kind[:-1]
        moved = steps[:-1][before_end].sum(0) @ whole / (whole @ whole)
        assert float(of_kind.displacement_share) == pytest.approx(moved, abs=1e-5)
        decrease = (losses[:-2] - losses[1:-1])[before_end].sum()
        assert float(of_kind.decrease) == pytest.approx(decrease, abs=1e-6)
        share = decrease / (losses[0] - losses[-2])
        assert float(of_kind.decrease_share) == pytest.approx(share, abs=1e-5)
    assert float(abs(found.displacement_share_stderr).max()) == 0
    assert float(found.segment_decrease.sum()) == pytest.approx(
        float(found.decrease.sum())
    )
    assert float(found.segment_path.sum()) == pytest.approx(lengths.sum(), rel=1e-5)


def test_displacement_from_probes_is_within_its_error(tmp_path: Path):
    """The run has enough dimensions for probes; each run has other random signs."""
    rng = np.random.default_rng(3)
    eigenvalues = rng.uniform(0.5, 1.3, 3000)
    start = rng.normal(size=3000)
    exact = descend(tmp_path / "exact.zarr", RATES, eigenvalues, start=start)
    probed = descend(
        tmp_path / "probed.zarr", RATES, eigenvalues, start=start, exact=False
    )
    expected, found = map(analyzers.zigzag_segments, (exact, probed))
    error = found.displacement_share - expected.displacement_share
    # Probes are stored in float16.
    allowed = 4 * found.displacement_share_stderr + 1e-3
    assert (abs(error) <= allowed).all()
    assert float(found.displacement_share_stderr.max()) > 1e-4
    assert float(found.displacement_share.sum()) == pytest.approx(1)


def test_shares_by_criterion_are_those_of_its_segments(run: Run):
    table = analyzers.zigzag_shares(
        run, windows=[1, 11], thresholds=[0.1, 0.9], smoothing=5
    )
    assert dict(table.sizes) == {"window": 2, "threshold": 2, "kind": 3}
    for window in (1, 11):
        for threshold in (0.1, 0.9):
            one = analyzers.zigzag_segments(
                run, window=window, threshold=threshold, smoothing=5
            )
            row = table.sel(window=window, threshold=threshold)
            for name, variable in row.data_vars.items():
                np.testing.assert_array_equal(variable, one[name], err_msg=str(name))


@pytest.mark.parametrize(
    "attrs", [{"training": {"full_batch": True}}, {"full_batch": True}], ids=str
)
def test_losses_of_full_batches_are_taken_as_they_are(
    tmp_path: Path, attrs: dict[str, Any]
):
    full = descend(tmp_path / "full.zarr", [0.1] * 20, [1.0], attrs=attrs)
    other = descend(tmp_path / "other.zarr", [0.1] * 20, [1.0])
    assert analyzers.zigzag_segments(full).attrs["smoothing"] == 1
    assert float(analyzers.zigzag_segments(full).decrease_stderr.max()) == 0
    assert analyzers.zigzag_segments(other).attrs["smoothing"] == 11


def test_a_run_without_losses_needs_none(tmp_path: Path):
    run = descend(tmp_path / "run.zarr", [0.1] * 20, [1.0], with_loss=False)
    with pytest.raises(
        KeyError, match=r"No losses 'loss' .* recorder\.log\(loss=loss\)"
    ):
        analyzers.zigzag_segments(run)
    with pytest.raises(KeyError, match="No losses 'loss'"):
        analyzers.zigzag_shares(run)
    found = analyzers.zigzag_segments(run, loss=None)
    assert "decrease" not in found
    assert float(found.step_share.sel(kind="smooth")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "`window` must be an odd number of steps, got 4"),
        ({"window": -1}, "`window` must be an odd number of steps, got -1"),
        ({"threshold": 1.5}, r"`threshold` must be from 0 to 1, got 1\.5"),
        ({"smoothing": 2}, "`smoothing` must be an odd number of steps, got 2"),
    ],
)
def test_numbers_out_of_range_are_refused(
    run: Run, options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        analyzers.zigzag_segments(run, **options)


def test_steps_are_selectable_by_epoch(example_run: Path):
    found = analyzers.zigzag_segments(trajstore.open_run(example_run))
    assert found.cosine.sel(epoch=3).sizes["step"] == 12
    assert found.running_cosine.attrs["long_name"] == "running median of the cosine"


def test_tensors_have_kinds_of_their_own(tmp_path: Path):
    import torch

    model = torch.nn.ParameterDict({"a": torch.ones(3), "b": torch.ones(3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with trajstore.Recorder(
        tmp_path / "run.zarr", model, optimizer, exact=True
    ) as recorder:
        for _ in range(30):
            for name, curvature in (("a", 0.1), ("b", 1.9)):
                model[name].grad = curvature * model[name].detach()
            recorder.log(loss=0.0)
            optimizer.step()
    run = trajstore.open_run(tmp_path / "run.zarr")
    found = analyzers.zigzag_layers(run)
    np.testing.assert_allclose(found.mean_cosine, [1, -1], atol=1e-6)
    assert float(found.step_share.sel(layer="a", kind="smooth")) == 1
    assert float(found.step_share.sel(layer="b", kind="zigzag")) == 1
    np.testing.assert_allclose(found.cosine.sel(layer="b")[1:], -1, atol=1e-6)
    assert found.first.values[[0, -1]].tolist() == [0, 29]
    with pytest.raises(ValueError, match="odd number"):
        analyzers.zigzag_layers(run, window=2)
