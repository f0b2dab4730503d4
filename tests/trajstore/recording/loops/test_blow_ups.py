"""Parameters that blow up, and are restored: no value is wrong without a word."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import optim

from analyzers import path_geometry
from tests.trajstore.recording.observed import Observed, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N_STEPS = 60


def by_rate(model: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["lr"] = 1e5


def by_scale(model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e6)


def to_nan(model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan


def one_layer(model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        model[2].bias.fill_(1e7)


CASES: dict[str, dict[str, Any]] = {
    "a rate": {"blow_up": by_rate},
    "a rate, exact": {"blow_up": by_rate, "exact": True},
    "a rate, AdamW": {"blow_up": by_rate, "make": optim.AdamW},
    "a rate, basis 1": {"blow_up": by_rate, "basis": 1},
    "a rate, in the first window": {"blow_up": by_rate, "at": 4},
    "a rate, twice": {"blow_up": by_rate, "again": 20},
    "a rate, with updates": {"blow_up": by_rate, "updates": True},
    "a rate, exact, with updates": {"blow_up": by_rate, "exact": True, "updates": True},
    "parameters": {"blow_up": by_scale},
    "parameters as a window begins": {"blow_up": by_scale, "at": 20},
    "one layer": {"blow_up": one_layer},
    "not finite": {"blow_up": to_nan},
    "not finite, as a window begins": {"blow_up": to_nan, "at": 20},
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_no_value_is_wrong_by_more_than_its_error(case: str, tmp_path: Path):
    options: dict[str, Any] = {
        "at": 28,
        "again": None,
        "make": optim.SGD,
        **CASES[case],
    }
    blow_up: Any = options.pop("blow_up")
    at, again, make = (options.pop(name) for name in ("at", "again", "make"))
    model, seen = net(), Observed()
    optimizer = make(model.parameters(), lr=0.02)
    blown = [at] if again is None else [at, at + again]
    with (
        warnings.catch_warnings(),
        Recorder(tmp_path / "run", model, optimizer, reference_every=10, **options),
    ):
        # Norms out of the range of float32 may be told of.
        warnings.simplefilter("ignore", UserWarning)
        for step in range(N_STEPS):
            if step in {b - 3 for b in blown}:
                kept = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
            if step in blown:
                blow_up(model, optimizer)
            if step in {b + 4 for b in blown}:
                model.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            optimizer.step()
    run = open_run(tmp_path / "run")
    x, g = np.array(seen.iterates), np.array(seen.gradients)
    end = np.concatenate([p.detach().double().ravel() for p in model.parameters()])
    geometry = path_geometry(run).compute()
    with np.errstate(all="ignore"):
        distance = np.linalg.norm(x - end, axis=1)
        gamma = (g * (x - end)).sum(1) / distance / np.linalg.norm(g, axis=1)
        u = np.diff([*x, end], axis=0)
        norms = {"grad_norm": g, "param_norm": x, "update_norm": u}
        recorded = {n: run.steps[n].values for n in norms if n in run.steps}
        if "update" in run.measurements:
            norms["measured"] = u
            recorded["measured"] = run.measured("update").steps.grad_norm.values
        for name, found in recorded.items():
            true = np.linalg.norm(norms[name], axis=1)
            known = np.isfinite(found)
            assert known.sum() >= N_STEPS - 14, name
            rtol = 0.02 if norms[name] is u else 1e-3
            np.testing.assert_allclose(found[known], true[known], rtol=rtol)
        for name, true in {"gamma": gamma, "distance": distance}.items():
            found = geometry[name].values
            known = np.isfinite(found) & np.isfinite(true)
            error = np.abs(found - true)[known]
            # The error is not known where the standard error is NaN.
            stderr = np.nan_to_num(geometry[f"{name}_stderr"].values[known], nan=np.inf)
            allowed = 6 * stderr
            scale = true[known] if name == "distance" else 1.0
            assert (error <= allowed + 1e-3 * scale).all()
    # The steps long before and long after are known.
    assert np.isfinite(geometry.gamma.values[: at - 1]).all()
    assert np.isfinite(geometry.gamma.values[blown[-1] + 16 : -1]).all()
