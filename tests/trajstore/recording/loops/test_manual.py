"""Steps that no optimizer takes through its hooks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import func, nn, optim

from tests.trajstore.recording.observed import Observed, iterate, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


def assert_recorded(path: Path, seen: Observed, model: Any) -> None:
    run = open_run(path)
    seen.agrees(run, model)
    moved = np.linalg.norm(np.diff([*seen.iterates, iterate(model)], axis=0), axis=1)
    np.testing.assert_allclose(run.steps.update_norm, moved, rtol=1e-4)


@pytest.mark.parametrize("how", ["data", "no_grad", "foreach", "assign", "exchange"])
def test_updates_by_hand(how: str, tmp_path: Path):
    model, seen = net(), Observed()

    def update() -> None:
        for name, p in list(model.named_parameters()):
            assert p.grad is not None
            if how == "data":
                p.data.add_(p.grad, alpha=-0.1)
            elif how == "no_grad":
                with torch.no_grad():
                    p.add_(p.grad, alpha=-0.1)
            elif how == "foreach":
                torch._foreach_add_([p.data], [p.grad], alpha=-0.1)
            elif how == "assign":
                p.data = p.data - 0.1 * p.grad
            else:
                module, _, kind = name.partition(".")
                new = nn.Parameter(p.detach() - 0.1 * p.grad)
                setattr(model[int(module)], kind, new)  # type: ignore[index]

    with Recorder(tmp_path / "run", model, None, exact=True) as recorder:
        for step in range(5):
            model.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            recorder.log(loss=step)
            with recorder.step():
                update()
    assert_recorded(tmp_path / "run", seen, model)


@pytest.mark.parametrize("keeps", [True, False], ids=["in-place", "new-mapping"])
def test_functional_updates(keeps: bool, tmp_path: Path):
    model = net()
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    iterates, gradients = [], []

    def loss(parameters: Any, step: int) -> Any:
        call = lambda inputs: func.functional_call(model, parameters, (inputs,))
        return loss_of(call, step)  # type: ignore[arg-type]

    recorder = Recorder(tmp_path / "run", parameters, None, exact=True)
    for step in range(5):
        found = func.grad(loss)(parameters, step)
        gradients.append(torch.cat([g.ravel() for g in found.values()]).numpy())
        iterates.append(torch.cat([p.ravel() for p in parameters.values()]).numpy())
        with recorder.step(found, None if keeps else parameters):
            new = {n: p - 0.1 * found[n] for n, p in parameters.items()}
            if keeps:
                parameters.update(new)
        if not keeps:
            parameters = new
    if keeps:
        recorder.close()
    else:
        with pytest.warns(UserWarning, match=r"after the last step are not known"):
            recorder.close()
    run, last = open_run(tmp_path / "run"), None if keeps else -1
    np.testing.assert_allclose(
        run.steps.grad_norm, np.linalg.norm(gradients, axis=1), rtol=1e-5
    )
    iterates.append(torch.cat([p.ravel() for p in parameters.values()]).numpy())
    moved = np.linalg.norm(np.diff(iterates, axis=0), axis=1)
    np.testing.assert_allclose(run.steps.update_norm[:last], moved[:last], rtol=1e-4)
    assert keeps or np.isnan(run.steps.update_norm[-1])


def test_an_optimizer_in_the_backward_pass(tmp_path: Path):
    model, seen = net(), Observed()
    optimizers = {p: optim.SGD([p], lr=0.05) for p in model.parameters()}
    names = {p: name for name, p in model.named_parameters()}
    gradients: dict[str, Any] = {}

    def step(parameter: Any) -> None:
        gradients[names[parameter]] = parameter.grad.clone()
        optimizers[parameter].step()
        parameter.grad = None

    hooks: list[Any] = []
    with Recorder(tmp_path / "run", model, [*optimizers.values()], exact=True) as r:
        for k in range(4):
            loss_of(model, k).backward()
            seen.before(model)
            model.zero_grad()
            hooks = [
                p.register_post_accumulate_grad_hook(step) for p in model.parameters()
            ]
            gradients.clear()
            with r.step(gradients):
                loss_of(model, k).backward()
            for hook in hooks:
                hook.remove()
    assert_recorded(tmp_path / "run", seen, model)


def move(model: Any) -> None:
    for p in model.parameters():
        p.data.add_(1)


class Foreign:
    """An optimizer that is no `torch.optim.Optimizer`, and wraps one that is recorded."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def step(self) -> None:
        for p in self.inner.param_groups[0]["params"]:
            p.data.mul_(0.9)
        self.inner.step()
        for p in self.inner.param_groups[0]["params"]:
            p.data.mul_(1.1)


def test_a_wrapper_is_recorded_as_a_whole(tmp_path: Path):
    model, seen = net(), Observed()
    outer = Foreign(optim.SGD(model.parameters(), lr=0.05))
    with Recorder(tmp_path / "run", model, outer.inner, exact=True) as recorder:
        for step in range(4):
            model.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            with recorder.step():
                outer.step()
    assert_recorded(tmp_path / "run", seen, model)
    assert (open_run(tmp_path / "run").steps.lr == 0.05).all()


def test_a_gradient_that_is_not_given_is_nan(tmp_path: Path):
    model = net()
    with Recorder(tmp_path / "run", model, None) as recorder:
        with (
            pytest.warns(UserWarning, match="gradient of step 0 is not known") as w,
            recorder.step(),
        ):
            move(model)
        with recorder.step([torch.ones_like(p) for p in model.parameters()]):
            pass
    assert w[0].filename == __file__
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(np.isnan(steps.grad_norm), [True, False])
    np.testing.assert_allclose(steps.update_norm, [65**0.5, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("gradients", "error"),
    [
        ([torch.ones(3)], r"Expected 4 gradients.* got 1"),
        ({"a": torch.ones(3)}, r"Gradients of \['a'\] were given"),
        ([np.ones(3)] * 4, r"is a ndarray, expected a torch tensor"),
    ],
)
def test_wrong_gradients_are_refused(gradients: Any, error: str, tmp_path: Path):
    with (
        Recorder(tmp_path / "run", net(), None) as recorder,
        pytest.raises((TypeError, ValueError), match=error),
        recorder.step(gradients),
    ):
        pass


def test_blocks_within_blocks_are_refused(tmp_path: Path):
    model = net()
    with (
        Recorder(tmp_path / "run", model, None) as recorder,
        recorder.step([torch.ones_like(p) for p in model.parameters()]),
        pytest.raises(RuntimeError, match="within the block"),
        recorder.step(),
    ):
        pass


def test_a_step_whose_block_fails_is_no_row(tmp_path: Path):
    model, seen = net(), Observed()
    with Recorder(tmp_path / "run", model, None, exact=True) as recorder:
        for step in range(3):
            model.zero_grad()
            loss_of(model, step).backward()
            if step == 1:
                with pytest.raises(KeyError, match="1"), recorder.step():
                    raise KeyError(step)
                continue
            seen.before(model)
            with recorder.step():
                for p in model.parameters():
                    p.data.mul_(0.9)
    assert_recorded(tmp_path / "run", seen, model)


def still_blocks(how: str, recorder: Any, parameters: Any) -> None:
    """Take steps in whose blocks no recorded tensor changes."""
    for _ in range(6):
        gradient = {"x": parameters["x"].clone()}
        if how == "before":
            parameters["x"].data -= 0.1 * gradient["x"]
        with recorder.step(gradient):
            if how == "rebound":
                parameters = {"x": parameters["x"] - 0.1 * gradient["x"]}
    recorder.close()


@pytest.mark.parametrize("how", ["before", "rebound", "never"])
def test_blocks_without_an_update_are_told_of(how: str, tmp_path: Path):
    parameters = {"x": torch.ones(3)}
    recorder = Recorder(tmp_path / "run", parameters, None, exact=True)
    with pytest.warns(UserWarning, match="No parameter changed") as told:
        still_blocks(how, recorder, parameters)
    assert [w.filename for w in told] == [__file__]


@pytest.mark.parametrize("how", ["data", "in-place", "exchange"])
@pytest.mark.parametrize("first", [1, 2])
def test_some_blocks_may_leave_the_parameters_as_they_are(
    first: int, how: str, tmp_path: Path
):
    # pytest makes an error of the warning.
    parameters = {"x": torch.ones(3)}
    with Recorder(tmp_path / "run", parameters, None, exact=True) as recorder:
        for step in range(8):
            with recorder.step({"x": parameters["x"].clone()}):
                if step != first:
                    continue
                if how == "data":
                    parameters["x"].data -= 0.1
                elif how == "in-place":
                    parameters["x"] -= 0.1
                else:
                    parameters["x"] = parameters["x"] - 0.1
