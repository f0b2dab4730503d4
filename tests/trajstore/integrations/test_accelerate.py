"""Recordings of loops that use Accelerate, compared with a plain loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from tests.trajstore.integrations.by_hand import (
    EPOCHS,
    N_BATCHES,
    SMALL,
    check_rows,
    final,
    flat,
    loss_of,
    make_loader,
    make_net,
    make_sgd,
    train_by_hand,
)
from trajstore.integrations.accelerate import inner_optimizer, record
from trajstore.integrations.participation import takes_part
from trajstore.reading.run import open_run
from trajstore.recording.recorder import no_op_recorder


def make_accelerator(**options: Any) -> Any:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, **options)


def train(
    path: Path | None,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Any:
    """Train with Accelerate; record if a path is given."""
    accelerator = make_accelerator(gradient_accumulation_steps=accumulate)
    net = make_net(dropout=dropout)
    optimizer = make_sgd(net)
    net, optimizer, loader = accelerator.prepare(net, optimizer, make_loader())
    torch.manual_seed(3)

    def loop(recorder: Any) -> None:
        for _ in range(EPOCHS):
            losses = []
            for batch in loader:
                with accelerator.accumulate(net):
                    loss = loss_of(net, batch)
                    losses.append(loss.detach())
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        if clip is not None:
                            accelerator.clip_grad_norm_(net.parameters(), clip)
                        recorder.log(loss=torch.stack(losses).mean())
                        losses = []
                    optimizer.step()
                    optimizer.zero_grad()

    if path is None:
        loop(no_op_recorder())
    else:
        with record(path, accelerator, net, optimizer, **options) as recorder:
            loop(recorder)
    return net


@pytest.mark.parametrize("accumulate", [1, 3], ids="accumulate={}".format)
@pytest.mark.parametrize("clip", [None, 0.3], ids="clip={}".format)
def test_rows_are_the_optimizer_steps(
    tmp_path: Path, accumulate: int, clip: float | None
):
    per_epoch = -(-N_BATCHES // accumulate)
    net = train(
        tmp_path / "run",
        accumulate=accumulate,
        clip=clip,
        exact=True,
        steps_per_epoch=per_epoch,
    )
    steps = train_by_hand(accumulate=accumulate, clip=clip)
    run = check_rows(tmp_path / "run", steps, steps_per_epoch=per_epoch)
    np.testing.assert_array_equal(final(run), flat(net.parameters()))
    assert run.spec.names == ("0.weight", "0.bias", "3.weight", "3.bias")


def test_training_is_the_same_bit_for_bit(tmp_path: Path):
    ends = []
    for path in (None, tmp_path / "run"):
        net = train(path, accumulate=3, clip=0.3, dropout=0.5, **SMALL)
        ends.append((flat(net.parameters()), torch.get_rng_state()))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_a_state_resumes_the_recording(tmp_path: Path):
    accelerator = make_accelerator()
    net = make_net()
    optimizer = make_sgd(net)
    net, optimizer, loader = accelerator.prepare(net, optimizer, make_loader())
    resume: Any = False
    for _ in range(2):
        with record(
            tmp_path / "run", accelerator, net, optimizer, resume=resume, **SMALL
        ) as recorder:
            for batch in loader:
                accelerator.backward(loss_of(net, batch))
                optimizer.step()
                optimizer.zero_grad()
            resume = recorder.state_dict()
    run = open_run(tmp_path / "run")
    assert (run.n_steps, run.status) == (2 * N_BATCHES, "complete")
    np.testing.assert_allclose(
        run.steps.grad_norm,
        [np.linalg.norm(s.gradient) for s in train_by_hand()[: 2 * N_BATCHES]],
        rtol=1e-4,
    )


def test_an_exception_leaves_a_failed_store(tmp_path: Path):
    accelerator = make_accelerator()
    net = make_net()
    net, optimizer = accelerator.prepare(net, make_sgd(net))
    recording = record(tmp_path / "run", accelerator, net, optimizer, **SMALL)

    def fail() -> None:
        with recording as recorder:
            # A wrong argument of a call of the recorder ends nothing.
            with pytest.warns(UserWarning, match="'loss' must be one number"):
                recorder.log(loss=torch.ones(2))
            raise ValueError("an error of the training")

    with pytest.raises(ValueError, match="of the training"):
        fail()
    assert open_run(tmp_path / "run").status == "failed"


def test_compiled_models_have_the_names_of_their_own(tmp_path: Path):
    accelerator = make_accelerator()
    net = make_net()
    compiled = torch.compile(net, backend="eager")
    compiled, optimizer = accelerator.prepare(compiled, make_sgd(net))
    with record(tmp_path / "run", accelerator, compiled, optimizer, **SMALL):
        pass
    assert open_run(tmp_path / "run").spec.names[0] == "0.weight"


def test_gradients_are_recorded_unscaled(tmp_path: Path):
    """The scaler's steps pass through Accelerate's wrapper; a few steps are skipped."""
    accelerator, net = make_accelerator(), make_net()
    sgd, scaler = make_sgd(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(sgd, scaler=scaler)
    batch = next(iter(make_loader()))
    with record(tmp_path / "run", accelerator, net, optimizer, **SMALL):
        for factor in (float("inf"), 1.0):
            loss = factor * loss_of(net, batch)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            optimizer.step()
    run, first = open_run(tmp_path / "run"), train_by_hand()[0]
    norm = np.linalg.norm(first.gradient)
    assert run.n_steps == 1
    assert float(run.steps.grad_norm[0]) == pytest.approx(norm, rel=1e-4)


def test_other_processes_do_not_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accelerate.Accelerator, "is_main_process", False)
    train(tmp_path / "run")
    accelerator, net = make_accelerator(), make_net()
    with record(tmp_path / "run", accelerator, net, make_sgd(net)) as recorder:
        recorder.measure("full_batch")
        recorder.snapshot("middle")
        recorder.start_epoch()
        recorder.flush()
        assert recorder.state_dict() == {}
    assert not (tmp_path / "run").exists()


def test_all_processes_record_divided_parameters(tmp_path: Path):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "group"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        shard = distribute_tensor(torch.ones(2), DeviceMesh("cpu", [0]))
        parameters = [torch.nn.Parameter(t) for t in (torch.ones(2), shard)]
        optimizers = [torch.optim.SGD([p]) for p in parameters]
        taking = [
            [takes_part([o], is_main=m) for o in optimizers] for m in (True, False)
        ]
    finally:
        torch.distributed.destroy_process_group()
    assert taking == [[True, True], [False, True]]


def test_the_inner_optimizer_is_found_and_others_are_left():
    net = make_net()
    sgd = make_sgd(net)
    prepared = make_accelerator().prepare(sgd)
    assert prepared is not sgd
    assert inner_optimizer(prepared) is inner_optimizer(sgd) is sgd
