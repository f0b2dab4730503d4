"""Run a training code plain and recorded, and compare bits and gamma with exact values."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import analyzers
import trajstore

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Session:
    """How one training run of a code is recorded, if at all."""

    recorded: bool
    store: str  # path of the store, when recorded

    def record(
        self,
        *objects: Any,
        recorder: Callable[..., Any] = trajstore.Recorder,
        **options: Any,
    ) -> AbstractContextManager[trajstore.Recorder | None]:
        """Return a recorder, or a context that does nothing in a plain run."""
        if not self.recorded:
            return nullcontext()
        return recorder(self.store, *objects, **options)

    @contextmanager
    def step(
        self, recorder: trajstore.Recorder | None, model: nn.Module
    ) -> Iterator[None]:
        """Record an update without an optimizer, as ``recorder.step()`` does."""
        if recorder is None:
            yield
            return
        with keeping(model), recorder.step():
            yield

    def callbacks(self, make: Callable[..., Any], **options: Any) -> list[Any]:
        """Return a trainer's list of callbacks: our callback, or none in a plain run."""
        return [make(self.store, **options)] if self.recorded else []


@dataclass(frozen=True)
class Code:
    """A public training code."""

    name: str
    source: str  # distribution on the package index, or repository
    lines: int  # lines that recording adds or changes
    train: Callable[[Session], Iterable[torch.Tensor]]  # returns the trained tensors


class Agreement(NamedTuple):
    """A recorded run compared with the plain run and with exact values."""

    n_params: int
    n_steps: int
    same_bits: bool
    gamma: float  # mean of the exact values
    rms_error: float
    sd_z: (
        float  # standard deviation of error / standard error; NaN for exact recordings
    )
    seconds: float


class StepKeeper:
    """Keep the parameters and gradients of every optimizer step in float64.

    The keeper hooks into all optimizers of the process and shares no code with the recorder.
    """

    active: ClassVar["StepKeeper | None"] = None
    """The keeper of steps without an optimizer."""

    def __init__(self) -> None:
        StepKeeper.active = self
        self.steps: dict[int, list[tuple[Vector, Vector]]] = {}
        self.parameters: dict[int, list[torch.Tensor]] = {}
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters[id(optimizer)] = parameters
        self._iterate, self._gradient = _flat(parameters), _gradient(parameters)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is self
        if closure is not None:  # it has computed the gradient of the step
            self._gradient = _gradient(self.parameters[id(optimizer)])
        if self._gradient.any():
            kept = self.steps.setdefault(id(optimizer), [])
            kept.append((self._iterate, self._gradient))

    def close(self) -> None:
        """Stop keeping."""
        StepKeeper.active = None
        for handle in self._handles:
            handle.remove()

    def exact_gamma(self, n_params: int, n_steps: int) -> Vector:
        """Return cos(g, x - x*) for the last iterate as x*, float64 (step,)."""
        for key, steps in self.steps.items():
            if len(steps) == n_steps and steps[0][0].size == n_params:
                final = _flat(self.parameters[key])
                return np.array([_cosine(g, x - final) for x, g in steps])
        kept = [(len(s), s[0][0].size) for s in self.steps.values()]
        raise RuntimeError(
            f"The store has {n_steps} steps of {n_params} parameters; optimizers took "
            f"(steps, parameters) {kept}."
        )


@contextmanager
def keeping(model: nn.Module) -> Iterator[None]:
    """Keep a step that no optimizer takes."""
    keeper = StepKeeper.active
    assert keeper is not None
    parameters = keeper.parameters[id(model)] = [*model.parameters()]
    kept = keeper.steps.setdefault(id(model), [])
    kept.append((_flat(parameters), _gradient(parameters)))
    yield


def compare(code: Code, directory: Path) -> Agreement:
    """Train a code plain and recorded."""
    seeded()
    plain = [t.detach().clone() for t in code.train(Session(False, ""))]
    keeper = StepKeeper()
    seeded()
    start = time.perf_counter()
    store = str(directory / f"{code.name.replace(' ', '-').replace('/', '-')}.zarr")
    recorded = [t.detach().clone() for t in code.train(Session(True, store))]
    seconds = time.perf_counter() - start
    keeper.close()
    run = trajstore.open_run(store)
    geometry = analyzers.path_geometry(run).compute()
    n_steps, n_params = run.n_steps, run.layout.n_params
    exact = keeper.exact_gamma(n_params, n_steps)
    error = geometry["gamma"].values - exact
    z = error / geometry["gamma_stderr"].values
    known = np.isfinite(z)
    return Agreement(
        n_params,
        n_steps,
        len(plain) == len(recorded) and all(map(torch.equal, plain, recorded)),
        float(np.nanmean(exact)),
        float(np.sqrt(np.nanmean(error**2))),
        float(z[known].std()) if known.any() else float("nan"),
        seconds,
    )


def seeded(seed: int = 0) -> None:
    """Seed torch's and NumPy's global streams."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # codes of others draw from it


def state(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module."""
    return [*module.state_dict().values()]


def _flat(tensors: Iterable[torch.Tensor]) -> Vector:
    return np.concatenate(
        [t.detach().cpu().double().reshape(-1).numpy() for t in tensors]
    )


def _gradient(parameters: Iterable[torch.Tensor]) -> Vector:
    return _flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def _cosine(a: Vector, b: Vector) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else float("nan")
