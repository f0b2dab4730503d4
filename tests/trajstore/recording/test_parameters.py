"""Parameters that are recorded, and parameters that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.regression import (
    SMALL,
    Array,
    Training,
    record,
    regression,
    take_step,
)
from tests.trajstore.recording.unusual_models import (
    Module,
    pull,
    sgd,
    vector,
)
from trajstore.recording.recorder import Recorder


def test_parameters_that_the_optimizer_does_not_hold_are_left_out(tmp_path: Path):
    m = Module(held=vector(4), other=vector(3))
    training = Training(m, torch.optim.SGD([m.held], lr=0.1), lambda _: pull(m.held))
    run, _ = record(tmp_path / "run", training, 2, **SMALL)
    assert run.layout.names == ("held",)


def test_a_tensor_without_elements_does_not_change_the_weights(tmp_path: Path):
    def weights(name: str, **more: Any) -> Array:
        m = Module(a=vector(5), b=vector(6), **more)
        training = Training(m, sgd(m), lambda _: pull(m.a, m.b))
        run, _ = record(tmp_path / name, training, 4, reference_every=2, **SMALL)
        values: Array = run.windows["weights"].values[-1, :2]
        return values

    expected = weights("without")
    assert (expected != 1).all()
    np.testing.assert_allclose(weights("with", none=vector(0, 4)), expected, rtol=1e-6)


def test_a_model_without_parameters(tmp_path: Path):
    optimizer = regression().optimizer
    with pytest.raises(ValueError, match="The model has no parameters"):
        Recorder(tmp_path / "run", nn.Tanh(), optimizer)


def test_arrays_instead_of_tensors(tmp_path: Path):
    x = np.ones(3)
    mixed: Any = {"y": torch.ones(2), "x": x}
    numbers: Any = {"x": 1.0}
    with pytest.raises(
        TypeError, match=r"1 of 2 values .* 'x', are .* numpy.ndarray; .*from_numpy"
    ):
        Recorder(tmp_path / "run", mixed, None)
    with pytest.raises(
        TypeError, match=r"are no tensors but builtins.float; .*updates"
    ):
        Recorder(tmp_path / "run", numbers, None)
    assert not (tmp_path / "run").exists()
    # As the message says.
    tensor = torch.from_numpy(x)
    with Recorder(tmp_path / "run", {"x": tensor}, None, exact=True) as recorder:
        for _ in range(3):
            tensor.grad = torch.ones(3, dtype=tensor.dtype)
            with recorder.step():
                x -= 0.5
    moved = open_run(tmp_path / "run").steps["update_norm"].values
    np.testing.assert_allclose(moved, 0.5 * 3**0.5)


def test_an_optimizer_of_another_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"4 of the 4 tensors .* are not parameters"):
        Recorder(tmp_path / "run", nn.Linear(2, 2), regression().optimizer)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        ([], "no optimizer"),
        (nn.Linear(2, 2), "Linear"),
        ([regression().optimizer, "sgd"], "str"),
        (iter([nn.Parameter(torch.ones(2))]), "Parameter"),
    ],
    ids=["none", "model", "text", "parameters"],
)
def test_objects_other_than_optimizers_are_refused(
    optimizer: Any, found: str, tmp_path: Path
):
    with pytest.raises(TypeError, match=f"must be a torch.optim.Optimizer .* {found}"):
        Recorder(tmp_path / "run", regression().model, optimizer)
    assert not (tmp_path / "run").exists()


def test_an_optimizer_without_hooks(tmp_path: Path):
    class Outer(optim.Optimizer):
        def __init__(self, inner: optim.Optimizer) -> None:
            self.optimizer, self.param_groups = inner, inner.param_groups

    training = regression()
    with pytest.raises(TypeError, match=r"Outer has no hooks.*`optimizer.optimizer`"):
        Recorder(tmp_path / "run", training.model, Outer(training.optimizer))
    assert not (tmp_path / "run").exists()


def test_objects_other_than_models_are_refused(tmp_path: Path):
    training = regression()
    parameters: Any = training.model.named_parameters()
    with pytest.raises(TypeError, match=r"`model` must be .*, got generator"):
        Recorder(tmp_path / "run", parameters, training.optimizer)


@pytest.mark.parametrize("kind", ["lazy", "meta"])
def test_parameters_without_elements_yet(kind: str, tmp_path: Path):
    model = nn.LazyLinear(2) if kind == "lazy" else nn.Linear(2, 2, device="meta")
    with pytest.raises(
        ValueError, match=r"2 parameters, including 'weight', .*no elements yet"
    ):
        Recorder(tmp_path / "run", model, torch.optim.SGD(model.parameters()))


def test_complex_parameters(tmp_path: Path):
    m = Module(z=nn.Parameter(torch.zeros(2, dtype=torch.complex64)), x=vector(3))
    with pytest.raises(NotImplementedError, match=r"Complex parameters .*\['z'\]"):
        Recorder(tmp_path / "run", m, sgd(m))


def test_parameters_whose_elements_lie_elsewhere(tmp_path: Path):
    from torch.testing._internal.two_tensor import TwoTensor

    part = vector(4)
    model = Module(sharded=nn.Parameter(TwoTensor(part.detach(), part.detach())))
    with pytest.raises(
        NotImplementedError, match=r"'sharded'.* are of the type TwoTensor"
    ):
        Recorder(tmp_path / "run", model, sgd(model))


def test_a_parameter_that_changes_its_shape_ends_the_recording(tmp_path: Path):
    training = regression()
    recorder = Recorder(
        tmp_path / "run", training.model, training.optimizer, steps_per_epoch=4, **SMALL
    )
    take_step(training, 0)
    weight = next(training.model.parameters())
    weight.grad, weight.data = None, weight.data[:1].clone()
    with pytest.warns(UserWarning, match=r"has the shape \(1, .* but had \("):
        training.optimizer.step()
    recorder.close()
    run = open_run(tmp_path / "run")
    assert run.n_steps == 1
    assert np.isfinite(run.steps.grad_norm.values).all()
    assert np.isnan(run.steps.update_norm.values).all()
    assert not run.has_final


def test_a_parameter_without_memory_ends_the_recording(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    # The optimizer leaves out a tensor without a gradient.
    weight = next(training.model.parameters())
    weight.grad = None
    weight.untyped_storage().resize_(0)
    told = pytest.warns(UserWarning, match="has no memory at the optimizer's step")
    with told, recorder:
        training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 1


def test_parameters_on_several_devices(tmp_path: Path):
    m = Module(a=vector(2), b=nn.Parameter(torch.zeros(2, device="meta")))
    with pytest.raises(NotImplementedError, match=r"on 2 devices, \['cpu', 'meta'\]"):
        Recorder(tmp_path / "run", m, sgd(m))


@pytest.mark.parametrize("part", ["optimizer", "engine", "parameters"])
def test_deepspeed_is_refused_by_name(part: str, tmp_path: Path):
    net = nn.Linear(2, 2)
    model: Any = net
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.1)
    if part == "optimizer":
        # The wrapper of ZeRO, which is no optimizer of torch.
        kind = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime"})
        optimizer = kind()
    elif part == "engine":
        names = {"__module__": "deepspeed.runtime.engine"}
        model = type("DeepSpeedEngine", (nn.Sequential,), names)(net)
        # The optimizer holds flat copies.
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(6))], lr=0.1)
    else:
        net.weight.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match=r"DeepSpeed.*FSDP2"):
        Recorder(tmp_path / "run", model, optimizer)
    assert not (tmp_path / "run").exists()
