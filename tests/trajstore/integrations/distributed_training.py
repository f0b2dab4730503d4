"""Train under DistributedDataParallel or FSDP2: ``torchrun THIS_FILE LIBRARY PATH``."""

import os
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from tests.trajstore.integrations.by_hand import (
    EPOCHS,
    N_BATCHES,
    SMALL,
    loss_of,
    make_data,
    make_net,
    make_sgd,
)


def lightning(path: Path) -> None:
    import lightning.pytorch as lightning

    from trajstore.integrations.lightning import TrajectoryCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def training_step(self, batch: Any, _index: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return make_sgd(self)

    data = make_data()
    rank = int(os.environ["RANK"])
    sampler = DistributedSampler[Any](data, 2, rank, shuffle=False)
    lightning.Trainer(
        accelerator="cpu",
        callbacks=[TrajectoryCallback(path, exact=True)],
        devices=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=EPOCHS,
        strategy="ddp",
        use_distributed_sampler=False,
    ).fit(Module(), DataLoader(data, batch_size=1, sampler=sampler))


def transformers(path: Path) -> None:
    import transformers

    from trajstore.integrations.transformers import TrajectoryCallback

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, inputs: Any, targets: Any) -> Any:
            return {"loss": loss_of(self.net, (inputs, targets))}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_args: Any) -> Any:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    model = Regression()
    args = transformers.TrainingArguments(
        str(path.parent / "checkpoints"),
        disable_tqdm=True,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=1,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    InOrder(
        model,
        args,
        train_dataset=[
            {"inputs": x, "targets": y}
            for x, y in zip(*make_data().tensors, strict=True)
        ],
        callbacks=[TrajectoryCallback(path, exact=True)],
        optimizers=(make_sgd(model), None),
    ).train()


def accelerate(path: Path) -> None:
    from accelerate import Accelerator

    train_accelerated(path, Accelerator(cpu=True), exact=True)


def train_accelerated(path: Path, accelerator: Any, **options: Any) -> None:
    from trajstore.integrations.accelerate import record

    net = make_net()
    net, optimizer, loader = accelerator.prepare(
        net, make_sgd(net), DataLoader(make_data(), batch_size=1)
    )
    assert len(loader) == N_BATCHES
    options |= {"steps_per_epoch": len(loader)}
    with record(path, accelerator, net, optimizer, **options) as recorder:
        for _ in range(EPOCHS):
            for batch in loader:
                loss = loss_of(net, batch)
                accelerator.backward(loss)
                recorder.log(loss=loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.end_training()


def fabric(path: Path) -> None:
    from lightning.fabric import Fabric

    from trajstore.recording.recorder import Recorder

    here = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    here.launch()
    net = make_net()
    net, optimizer = here.setup(net, make_sgd(net))
    loader: Any = here.setup_dataloaders(DataLoader(make_data(), batch_size=1))
    with Recorder(path, net, optimizer, steps_per_epoch=N_BATCHES, exact=True) as r:
        for _ in range(EPOCHS):
            for batch in loader:
                loss = loss_of(net, batch)
                here.backward(loss)
                r.log(loss=loss)
                optimizer.step()
                optimizer.zero_grad()


def accelerate_fsdp(path: Path) -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    train_accelerated(path, Accelerator(cpu=True, fsdp_plugin=plugin), **SMALL)


def sharded(net: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net, mesh=mesh["data_parallel"])


def lightning_fsdp(path: Path) -> None:
    import lightning.pytorch as lightning
    from lightning.pytorch.strategies import ModelParallelStrategy

    from trajstore.integrations.lightning import TrajectoryCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def configure_model(self) -> None:
            sharded(self.net, self.device_mesh)

        def training_step(self, batch: Any, _index: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return make_sgd(self)

    data, rank = make_data(), int(os.environ["RANK"])
    sampler = DistributedSampler[Any](data, 2, rank, shuffle=False)
    lightning.Trainer(
        accelerator="cpu",
        callbacks=[TrajectoryCallback(path, **SMALL)],
        devices=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=EPOCHS,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        use_distributed_sampler=False,
    ).fit(Module(), DataLoader(data, batch_size=1, sampler=sampler))


def fabric_fsdp(path: Path) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    from trajstore.recording.recorder import Recorder

    strategy = ModelParallelStrategy(
        sharded, data_parallel_size=2, tensor_parallel_size=1
    )
    here = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    here.launch()
    net = here.setup_module(make_net())
    optimizer: Any = here.setup_optimizers(make_sgd(net))
    loader: Any = here.setup_dataloaders(DataLoader(make_data(), batch_size=1))
    with Recorder(path, net, optimizer, steps_per_epoch=N_BATCHES, **SMALL) as r:
        for _ in range(EPOCHS):
            for batch in loader:
                loss = loss_of(net, batch)
                here.backward(loss)
                r.log(loss=loss)
                optimizer.step()
                optimizer.zero_grad()


LIBRARIES = (
    *(lightning, transformers, accelerate, fabric),
    *(lightning_fsdp, accelerate_fsdp, fabric_fsdp),
)

if __name__ == "__main__":
    {f.__name__: f for f in LIBRARIES}[sys.argv[1]](Path(sys.argv[2]))
    # A gloo thread that frees the last tensor while the interpreter ends aborts
    # the process.
    sys.stderr.flush()
    os._exit(0)
