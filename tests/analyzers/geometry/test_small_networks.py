"""Compare geometry of packed sketches with exact values, for several seeds of the recorder."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import analyzers
from trajstore import Recorder, open_run

N_STEPS, N_SEEDS = 40, 4


class Recorded(NamedTuple):
    """One training run, recorded several times in every setting, and its exact geometry."""

    stores: dict[str, list[Path]]
    numerator: Any  # <g, x - x*>, (step, layer)
    distance: Any  # |x - x*|, (step, layer)
    norm: Any  # |g|, (step, layer)


SETTINGS: dict[str, dict[str, Any]] = {
    "1 bit": {"sketch_bits": 512},
    "2 bits": {"sketch_bits": 1024},
    "4 bits": {"sketch_bits": 2048},
    "8 bits": {"sketch_bits": 4096},
    "16 bits": {},
    "few probes": {"probes": 64},
    "measured": {"sketch_bits": 2048, "updates": True},
}
BITS = {"1 bit": 1, "2 bits": 2, "4 bits": 4, "8 bits": 8, "16 bits": 16}


def by_layer(x: Any, y: Any, sizes: list[int]) -> Any:
    return np.add.reduceat(x * y, np.cumsum([0, *sizes[:-1]]), axis=-1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 24), torch.nn.Tanh(), torch.nn.Linear(24, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = torch.randn(256, 10), torch.randn(256, 4)
    stores = {
        name: [folder / f"{name} {seed}.zarr" for seed in range(N_SEEDS)]
        for name in SETTINGS
    }
    sizes = [p.numel() for p in model.parameters()]

    def flat(tensors: Any) -> Any:
        return torch.cat([t.detach().flatten() for t in tensors]).double().numpy()

    iterates, gradients = [], []
    with ExitStack() as stack:
        for name, options in SETTINGS.items():
            for seed, store in enumerate(stores[name]):
                recorder = Recorder(
                    store,
                    model,
                    optimizer,
                    reference_every=10,
                    total_steps=N_STEPS,
                    seed=seed,
                    **options,
                )
                stack.enter_context(recorder)
        for step in range(N_STEPS):
            generator = torch.Generator().manual_seed(step)
            batch = torch.randint(256, (16,), generator=generator)
            optimizer.zero_grad()
            (model(inputs[batch]) - targets[batch]).square().mean().backward()
            iterates.append(flat(model.parameters()))
            gradients.append(flat(p.grad for p in model.parameters()))
            optimizer.step()
    way = np.stack(iterates) - flat(model.parameters())
    g = np.stack(gradients)
    return Recorded(
        stores,
        by_layer(g, way, sizes),
        np.sqrt(by_layer(way, way, sizes)),
        np.sqrt(by_layer(g, g, sizes)),
    )


def geometries(recorded: Recorded, name: str, *, layers: bool) -> Any:
    results = [
        analyzers.path_geometry(open_run(store), layers=layers).compute()
        for store in recorded.stores[name]
    ]
    assert results[0].sizes["step"] == N_STEPS
    return results


def z_of(results: Any, quantity: str, exact: Any) -> Any:
    """Return errors over standard errors, (seed, step, ...)."""
    return np.stack([
        (r[quantity].values - exact) / r[f"{quantity}_stderr"].values for r in results
    ])  # fmt: skip


@pytest.mark.parametrize("name", BITS)
def test_products_of_packed_sketches_err_as_stated(recorded: Recorded, name: str):
    spec = open_run(recorded.stores[name][0]).spec
    assert (spec.bits_per_number, spec.sketch_numbers) == (BITS[name], 512)
    results = geometries(recorded, name, layers=False)
    exact = recorded.numerator.sum(1) / (recorded.norm**2).sum(1)
    z = z_of(results, "lolr", exact)[:, :-2]
    # 4 seeds in 38 steps.
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.25)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    by_layer = geometries(recorded, name, layers=True)
    z = z_of(by_layer, "lolr", recorded.numerator / recorded.norm**2)[:, :-2]
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.25)


def test_every_doubling_of_bits_makes_products_more_precise(recorded: Recorded):
    exact = recorded.numerator.sum(1) / (recorded.norm**2).sum(1)
    errors = []
    for name in BITS:
        results = geometries(recorded, name, layers=False)
        found = np.stack([r.lolr.values for r in results])[:, :-2]
        errors.append(np.sqrt(np.mean((found - exact[:-2]) ** 2)))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.35 * errors[1]
    assert errors[3] < 0.12 * errors[2]
    assert errors[4] < 0.1 * errors[3]


def test_distances_are_exact_if_every_parameter_has_a_probe(recorded: Recorded):
    results = geometries(recorded, "16 bits", layers=False)
    exact = np.sqrt((recorded.distance**2).sum(1))
    for result in results:
        np.testing.assert_allclose(result.distance, exact, rtol=2e-4)
        assert (result.distance_stderr < 3e-4 * exact).all()
    for result in geometries(recorded, "16 bits", layers=True):
        np.testing.assert_allclose(result.distance, recorded.distance, rtol=3e-3)


def test_distances_from_few_probes_err_as_stated(recorded: Recorded):
    results = geometries(recorded, "few probes", layers=False)
    # The distance is exact at the starts of windows; errors in a window are alike.
    inside = results[0].distance_stderr.values > 0
    results = [r.isel(step=inside) for r in results]
    exact = np.sqrt((recorded.distance**2).sum(1))
    z = z_of(results, "distance", exact[inside])
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.5
    assert np.abs(z).max() < 6


def test_updates_are_packed_as_well(recorded: Recorded):
    run = open_run(recorded.stores["measured"][0])
    updates = run.measured("update")
    assert updates.stored.array("signs").shape[1] == 2048 // 8
    geometry = analyzers.path_geometry(updates).compute()
    # An update of plain SGD is -lr g.
    lengths = np.sqrt((recorded.norm**2).sum(1) * (recorded.distance**2).sum(1))
    exact = -recorded.numerator.sum(1) / lengths
    np.testing.assert_allclose(geometry.gamma[:-2], exact[:-2], atol=0.03)
