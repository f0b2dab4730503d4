"""Optimizers take the published steps, computed in NumPy and float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.optim.ngn import NGN
from trajstore.optim.normalized_sgd import NormalizedSGD
from trajstore.optim.sps_max import SPSmax
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N_STEPS = 12

# A least-squares problem of two tensors: residuals A u + B v - y, loss |.|^2 / (2 n).
RNG = np.random.default_rng(0)
A, B, Y = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 3)), RNG.normal(size=9)
U, V = RNG.normal(size=4), RNG.normal(size=3)


def value_and_gradients(u: Any, v: Any) -> tuple[float, Any, Any]:
    residual = A @ u + B @ v - Y
    return residual @ residual / 18, A.T @ residual / 9, B.T @ residual / 9


def nsgd_by_hand(lr: float, beta: float) -> Iterator[tuple[Any, Any, float]]:
    u, v, m = U.copy(), V.copy(), None
    for _ in range(N_STEPS):
        _, gu, gv = value_and_gradients(u, v)
        g = np.concatenate([gu, gv])
        m = g if m is None else beta * m + (1 - beta) * g
        size = lr / np.sqrt(sum(x * x for x in m))
        u, v = u - size * m[:4], v - size * m[4:]
        yield u, v, size


def along_gradients(size_of: Callable[[float, float], float]) -> Iterator[Any]:
    u, v = U.copy(), V.copy()
    for _ in range(N_STEPS):
        f, gu, gv = value_and_gradients(u, v)
        size = size_of(f, sum(x * x for x in [*gu, *gv]))
        u, v = u - size * gu, v - size * gv
        yield u, v, size


Step = tuple[Any, Any, float]
CASES: dict[str, tuple[Any, Callable[[], Iterator[Step]]]] = {
    "nsgd": (lambda p: NormalizedSGD(p, lr=0.2), lambda: nsgd_by_hand(0.2, 0.9)),
    "nsgd without momentum": (
        lambda p: NormalizedSGD(p, lr=0.2, beta=0.0),
        lambda: nsgd_by_hand(0.2, 0.0),
    ),
    "spsmax": (
        lambda p: SPSmax(p, lr=1.0),
        lambda: along_gradients(lambda f, g: min(f / (0.5 * g), 1.0)),
    ),
    "spsmax with a smallest loss": (
        lambda p: SPSmax(p, lr=100.0, c=0.7, f_star=-0.5),
        lambda: along_gradients(lambda f, g: min((f + 0.5) / (0.7 * g), 100.0)),
    ),
    "ngn": (
        lambda p: NGN(p, lr=3.0),
        lambda: along_gradients(lambda f, g: 3 / (1 + 3 * g / (2 * f))),
    ),
}


def steps_by_hand(name: str) -> list[Step]:
    return list(CASES[name][1]())


class Problem(nn.Module):
    """The same problem in torch, with a frozen parameter and an unused parameter."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor(U, dtype=dtype))
        self.v = nn.Parameter(torch.tensor(V, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def loss(self) -> Any:
        a, b, y = (torch.tensor(x, dtype=self.u.dtype) for x in (A, B, Y))
        return (a @ self.u + b @ self.v - y).square().mean() / 2

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.u, self.frozen]},
            {"params": [self.v, self.unused]},
        ]


def step(optimizer: Any, loss: Any) -> None:
    if isinstance(optimizer, NormalizedSGD):
        optimizer.step()
    else:
        optimizer.step(loss=loss)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)]
)
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_papers(name: str, dtype: str, tolerance: float):
    expected = steps_by_hand(name)
    problem = Problem(getattr(torch, dtype))
    optimizer = CASES[name][0](problem.groups())
    bound = optimizer.param_groups[0]["lr"]
    for u, v, size in expected:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        step(optimizer, loss)
        np.testing.assert_allclose(problem.u.detach(), u, tolerance, tolerance)
        np.testing.assert_allclose(problem.v.detach(), v, tolerance, tolerance)
        for group in optimizer.param_groups:
            assert float(group["step_size"]) == pytest.approx(size, rel=10 * tolerance)
            assert group["lr"] == bound
    assert len(expected) == N_STEPS
    for still in (problem.frozen, problem.unused):
        assert torch.equal(still, torch.ones_like(still))


def test_both_sides_of_the_bound_of_spsmax_are_taken():
    sizes = [s for _, _, s in along_gradients(lambda f, g: min(f / (0.5 * g), 1.0))]
    assert max(sizes) == 1
    assert min(sizes) < 1


@pytest.mark.parametrize("name", CASES)
def test_groups_have_their_own_learning_rates_and_share_one_norm(name: str):
    problem = Problem(torch.float64)
    groups = problem.groups()
    groups[1]["lr"] = 0.0
    optimizer = CASES[name][0](groups)
    loss = problem.loss()
    loss.backward()
    step(optimizer, loss)
    _, gu, gv = value_and_gradients(U, V)
    assert torch.equal(problem.v, torch.tensor(V))
    if isinstance(optimizer, NormalizedSGD):
        moved = np.linalg.norm(problem.u.detach().numpy() - U)
        share = np.linalg.norm(gu) / np.linalg.norm([*gu, *gv])
        assert moved == pytest.approx(0.2 * share)
    else:
        size = steps_by_hand(name)[0][2]
        np.testing.assert_allclose(problem.u.detach(), U - size * gu, 1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", [0.0, 1.5])
def test_without_a_gradient_nothing_moves(name: str, loss: float):
    problem = Problem(torch.float32)
    optimizer = CASES[name][0](problem.groups())
    step(optimizer, loss)  # no parameter has a gradient
    for p in (problem.u, problem.v):
        p.grad = torch.zeros_like(p)
    step(optimizer, loss)
    np.testing.assert_array_equal(problem.u.detach(), U.astype(np.float32))
    expected = 0 if "nsgd" in name else optimizer.param_groups[0]["lr"]
    assert float(optimizer.param_groups[0]["step_size"]) == np.float32(expected)


@pytest.mark.parametrize("kind", [SPSmax, NGN])
def test_parameters_do_not_move_at_zero_loss(kind: Any):
    x = nn.Parameter(torch.ones(2))
    optimizer = kind([x], lr=1)
    x.grad = torch.ones(2)
    for loss in (0.0, -1e-8):  # rounding can make a loss of 0 slightly negative
        optimizer.step(loss=loss)
        assert torch.equal(x, torch.ones(2))
        assert float(optimizer.param_groups[0]["step_size"]) == 0


@pytest.mark.parametrize("name", CASES)
def test_nan_is_passed_on(name: str):
    problem = Problem(torch.float32)
    optimizer = CASES[name][0](problem.groups())
    loss = problem.loss() * torch.nan
    loss.backward()
    step(optimizer, loss)
    assert torch.isnan(problem.u).all()


def test_half_precision_does_not_overflow():
    x = nn.Parameter(torch.zeros(1000, dtype=torch.float16))
    optimizer = NormalizedSGD([x], lr=1.0)
    x.grad = torch.full_like(x, 3e4)  # the norm of 9.5e5 exceeds float16's 6.6e4
    optimizer.step()
    torch.testing.assert_close(x, torch.full_like(x, -(1000**-0.5)))


@pytest.mark.parametrize("name", CASES)
def test_states_are_saved_and_restored(name: str, tmp_path: Path):
    def some_steps(problem: Any, optimizer: Any) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            step(optimizer, loss)

    one = Problem(torch.float32)
    optimizer = CASES[name][0](one.groups())
    some_steps(one, optimizer)
    state = {"model": one.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state")
    some_steps(one, optimizer)

    other = Problem(torch.float32)
    resumed = CASES[name][0](other.groups())
    state = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    some_steps(other, resumed)
    assert torch.equal(one.u, other.u)
    assert torch.equal(one.v, other.v)


@pytest.mark.parametrize("name", CASES)
def test_recorded_runs_show_the_step_sizes(name: str, tmp_path: Path):
    def trained(observed: bool) -> Any:
        problem = Problem(torch.float32)
        optimizer = CASES[name][0](problem.groups())
        options: Any = {"steps_per_epoch": N_STEPS, "exact": True}
        recorder = (
            Recorder(tmp_path / "run.zarr", problem, optimizer, **options)
            if observed
            else None
        )
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            step(optimizer, loss)
        if recorder is not None:
            recorder.close()
        return problem

    recorded, alone = trained(True), trained(False)
    assert torch.equal(recorded.u, alone.u)
    run = open_run(tmp_path / "run.zarr")
    sizes = [size for _, _, size in steps_by_hand(name)]
    for column in ("step_size", "step_size_1"):
        np.testing.assert_allclose(run.steps[column], sizes, rtol=3e-4)
    bound = CASES[name][0]([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    np.testing.assert_array_equal(run.steps["lr"], np.float64(bound))
    # Recorded gradients and updates are consistent.
    if name == "nsgd":
        np.testing.assert_allclose(run.steps["update_norm"], 0.2, rtol=1e-5)
    if "nsgd" not in name:
        update = run.steps["step_size"] * run.steps["grad_norm"]
        np.testing.assert_allclose(run.steps["update_norm"], update, rtol=1e-5)


X = torch.zeros(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalizedSGD([X], lr=-1.0), r"lr: expected at least 0, got -1\.0"),
        (lambda: SPSmax([X], lr=-1.0), r"lr: expected at least 0, got -1\.0"),
        (lambda: NGN([X], lr=float("nan")), "lr: expected at least 0, got nan"),
        (lambda: NormalizedSGD([X], lr=1, beta=1.0), r"beta: .* less than 1, got 1\.0"),
        (lambda: SPSmax([X], lr=1, c=0.0), r"c: expected a positive number, got 0\.0"),
        (
            lambda: SPSmax([X], lr=1).step(),
            r"SPSmax needs the loss .*step\(loss=loss\)",
        ),
        (lambda: NGN([X], lr=1).step(), r"NGN needs the loss .*step\(loss=loss\)"),
        (lambda: NGN([X], lr=1).step(loss=-0.1), r"NGN .* at least 0\.0, got -0\.1"),
        (
            lambda: SPSmax([X], lr=1, f_star=2.0).step(loss=1.5),
            r"SPSmax needs losses of at least 2\.0, got 1\.5",
        ),
        (
            lambda: NGN([X], lr=1).step(loss=X),
            r"one number as the loss, got the shape \(2,\)",
        ),
    ],
    ids=range(10),
)
def test_mistakes_are_reported_in_one_sentence(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [NormalizedSGD, SPSmax, NGN])
def test_closures_are_refused(kind: Any):
    with pytest.raises(NotImplementedError, match=f"{kind.__name__} takes no closure"):
        kind([nn.Parameter(torch.zeros(2))], lr=1).step(lambda: 1)
