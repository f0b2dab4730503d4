"""Training codes of repositories, run from checkouts on small random data.

Every code is read from a directory ``CHECKOUTS/NAME`` and gets the lines that docs/integrations.md
asks for; nothing of it is kept here.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import Code, Session, state
from packages import plain_loop
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CHECKOUTS = Path(os.environ.get("CHECKOUTS", ""))

ENTER = "recording.enter_context(session.record({arguments}))"
"""The line that a code gets; `recording` closes the recorder when the code ends."""

Trained = Iterable[torch.Tensor]


@contextmanager
def checkout(name: str, folder: str = ".", **modules: Any) -> Iterator[ExitStack]:
    """Work in a folder of a checkout, import from it, and forget its modules afterwards."""
    before = set(sys.modules)
    path = (CHECKOUTS / name / folder).resolve()
    with ExitStack() as recording, chdir(path), mock.patch.dict(sys.modules, modules):
        sys.path.insert(0, str(path))
        try:
            yield recording
        finally:
            sys.path.remove(str(path))
            for module in set(sys.modules) - before:
                if str(path) in str(getattr(sys.modules[module], "__file__", "")):
                    del sys.modules[module]


def run_source(
    file: str, edits: dict[str, str], *, name: str = "code", **names: Any
) -> dict[str, Any]:
    """Run a file of the checkout with edits, and return its global names."""
    source = Path(file).read_text()
    for old, new in edits.items():
        if source.count(old) != 1:
            raise ValueError(
                f"{file} has {source.count(old)} lines {old!r}, expected 1."
            )
        source = source.replace(old, new)
    namespace = {"__name__": name, "__file__": file, **names}
    exec(compile(source, file, "exec"), namespace)
    return namespace


def images(n: int = 160, size: int = 32, channels: int = 3) -> TensorDataset:
    """Return random images, and labels that depend on them."""
    x = torch.randn(n, channels, size, size)
    return TensorDataset(x, (x.flatten(1) @ torch.randn(x[0].numel(), 10)).argmax(1))


def nano_gpt(session: Session) -> Trained:
    """Train nanoGPT by its script: accumulation, clipping, warm-up and decay."""
    with checkout("nanoGPT") as recording:
        data = Path("data/tiny")
        data.mkdir(exist_ok=True)
        for split in ("train", "val"):
            tokens = np.random.default_rng(0).integers(60, size=4000, dtype=np.uint16)
            tokens.tofile(data / f"{split}.bin")
        arguments = (
            "--dataset=tiny --device=cpu --compile=False --dtype=float32 --n_layer=2 "
            "--n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --max_iters=40 "
            "--gradient_accumulation_steps=2 --eval_interval=1000 --eval_iters=1 "
            "--warmup_iters=5 --lr_decay_iters=40 --log_interval=100"
        )
        line = "checkpoint = None # free up memory\n"
        enter = ENTER.format(arguments="model, optimizer, reference_every=10")
        with mock.patch.object(sys, "argv", ["train.py", *arguments.split()]):
            names = run_source(
                "train.py",
                {line: f"{line}{enter}\n"},
                session=session,
                recording=recording,
            )
        return state(names["model"])


def min_gpt(session: Session) -> Trained:
    """Train minGPT by its trainer, which makes the optimizer itself."""
    with checkout("minGPT") as recording:
        from mingpt.model import GPT  # type: ignore[import-not-found]
        from mingpt.trainer import Trainer  # type: ignore[import-not-found]

        config = GPT.get_default_config()
        config.model_type = "gpt-nano"
        config.vocab_size, config.block_size = 50, 16
        model = GPT(config)
        tokens = torch.randint(50, (200, 17))
        settings = Trainer.get_default_config()
        settings.max_iters, settings.batch_size, settings.num_workers = 40, 16, 0
        settings.device = "cpu"
        configure = model.configure_optimizers

        def configured(config: Any) -> torch.optim.Optimizer:
            optimizer = configure(config)
            recording.enter_context(
                session.record(model, optimizer, reference_every=10)
            )
            return optimizer

        model.configure_optimizers = configured
        data = TensorDataset(tokens[:, :-1], tokens[:, 1:])
        # Its sampler draws ten billion indices at once unless they are few.
        sampler = partial(torch.utils.data.RandomSampler, data, replacement=True)
        with mock.patch.object(
            torch.utils.data, "RandomSampler", lambda *_, **__: sampler(num_samples=640)
        ):
            Trainer(settings, model, data).run()
        return state(model)


def sam(session: Session) -> Trained:
    """Train with SAM by the example script of its repository."""

    class Cifar:
        def __init__(self, batch_size: int, threads: int) -> None:
            self.train = DataLoader(images(64), batch_size=8, shuffle=True)
            self.test = DataLoader(images(16), batch_size=8)

    cifar = ModuleType("data.cifar")
    cifar.Cifar = Cifar  # type: ignore[attr-defined]
    package = ModuleType("data")
    modules = {"data": package, "data.cifar": cifar}
    with checkout("sam", "example") as recording, mock.patch.dict(sys.modules, modules):
        sys.path.insert(0, str(Path("..").resolve()))
        arguments = "--epochs 3 --depth 10 --width_factor 1 --threads 0 --batch_size 8"
        line = "    scheduler = StepLR("
        enter = ENTER.format(
            arguments="model, optimizer.base_optimizer, steps_per_epoch=8"
        )
        try:
            with mock.patch.object(sys, "argv", ["train.py", *arguments.split()]):
                names = run_source(
                    "train.py",
                    {line: f"    {enter}\n{line}"},
                    name="__main__",
                    session=session,
                    recording=recording,
                )
        finally:
            sys.path.pop(0)
        return state(names["model"])


def edge_of_stability(session: Session) -> Trained:
    """Train by full-batch descent with the code of "Gradient Descent ... at the Edge"."""
    with checkout("edge-of-stability", "src") as recording, ExitStack() as patches:
        for owner in (torch.Tensor, nn.Module):
            patches.enter_context(mock.patch.object(owner, "cuda", lambda x: x))
        results = session.store + ".eos" if session.recorded else "/tmp/eos-plain"
        patches.enter_context(
            mock.patch.dict(os.environ, RESULTS=results, DATASETS=".")
        )
        kept: list[nn.Module] = []
        line = "    optimizer = get_gd_optimizer(network.parameters(), opt, lr, beta)\n"
        enter = ENTER.format(arguments="network, optimizer, reference_every=10")
        names = run_source(
            "gd.py",
            {line: f"{line}    kept.append(network)\n    {enter}\n"},
            session=session,
            recording=recording,
            kept=kept,
        )
        data = images(100)
        one_hot = nn.functional.one_hot(data.tensors[1], 10).float()
        names["load_dataset"] = lambda *_: (
            (TensorDataset(data.tensors[0], one_hot),) * 2
        )
        names["main"]("cifar10-1k", "fc-tanh", "mse", "gd", 0.01, 40, save_freq=-1)
        return state(kept[0])


def cifar_repository(session: Session) -> Trained:
    """Train pytorch-cifar's script with its LeNet."""
    with checkout("pytorch-cifar") as recording, ExitStack() as patches:
        import torchvision

        patches.enter_context(
            mock.patch.object(torchvision.datasets, "CIFAR10", lambda **_: images(640))
        )
        patches.enter_context(mock.patch.object(sys, "argv", ["main.py"]))
        utils = ModuleType("utils")
        utils.progress_bar = lambda *_: None  # type: ignore[attr-defined]
        patches.enter_context(mock.patch.dict(sys.modules, utils=utils))
        line = "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)"
        enter = ENTER.format(
            arguments="net, optimizer, steps_per_epoch=len(trainloader)"
        )
        names = run_source(
            "main.py",
            {
                "net = SimpleDLA()": "net = LeNet()",
                line: f"{line}\n{enter}",
                "range(start_epoch, start_epoch+200)": "range(4)",
                "    test(epoch)": "",
                "trainset, batch_size=128, shuffle=True, num_workers=2": (
                    "trainset, batch_size=64, shuffle=True, num_workers=0"
                ),
            },
            session=session,
            recording=recording,
        )
        return state(names["net"])


def schedule_free_example(session: Session) -> Trained:
    """Train by the MNIST example of schedule_free."""
    with (
        checkout("schedule_free", "examples/mnist") as recording,
        ExitStack() as patches,
    ):
        from torchvision import datasets

        patches.enter_context(
            mock.patch.object(
                datasets, "MNIST", lambda *_, **__: images(160, size=28, channels=1)
            )
        )
        arguments = ["main.py", "--batch-size", "16", "--epochs", "3", "--no-cuda"]
        patches.enter_context(mock.patch.object(sys, "argv", arguments))
        kept: list[nn.Module] = []
        line = "    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=args.lr)\n"
        enter = ENTER.format(
            arguments="model, optimizer, steps_per_epoch=len(train_loader)"
        )
        names = run_source(
            "main.py",
            {line: f"{line}    kept.append(model)\n    {enter}\n"},
            session=session,
            recording=recording,
            kept=kept,
        )
        names["main"]()
        return state(kept[0])


def muon(session: Session) -> Trained:
    """Train a perceptron with Muon for its matrices and Adam for the rest."""
    with checkout("Muon"):
        from muon import SingleDeviceMuonWithAuxAdam  # type: ignore[import-not-found]

        def make(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
            held = list(parameters)
            matrices = [p for p in held if p.ndim == 2]
            others = [p for p in held if p.ndim < 2]
            groups = [
                {"params": matrices, "use_muon": True},
                {"params": others, "use_muon": False},
            ]
            return SingleDeviceMuonWithAuxAdam(groups)

        return plain_loop(session, make)


def word_language_model(session: Session) -> Trained:
    """Train the LSTM of PyTorch's example, whose loop updates parameters without an optimizer."""
    with (
        checkout("examples", "word_language_model") as recording,
        TemporaryDirectory() as directory,
    ):
        rng = np.random.default_rng(0)
        for name, n in {"train": 50, "valid": 8, "test": 8}.items():
            # Every word is likely to be followed by the next one.
            words = np.cumsum(rng.integers(1, 3, size=(n, 12)), axis=1) % 40
            lines = [" ".join(f"w{i}" for i in line) for line in words]
            Path(directory, f"{name}.txt").write_text("\n".join(lines))
        arguments = (
            f"--data {directory} --save {directory}/model.pt --model LSTM --emsize 20 --nhid 20 "
            "--nlayers 1 --dropout 0 --epochs 3 --batch_size 8 --bptt 6 --lr 2"
        )
        line, update = (
            "criterion = nn.NLLLoss()\n",
            "            for p in model.parameters():\n",
        )
        step = "                p.data.add_(p.grad, alpha=-lr)\n"
        enter = ENTER.format(arguments="model, None, reference_every=10")
        edits = {
            line: f"{line}kept.append(model)\nrecorder = {enter}\n",
            update + step: "            with session.step(recorder, model):\n"
            + "".join(f"    {text}\n" for text in (update + step).splitlines()),
            "# Load the best saved model.\n": "raise SystemExit\n",
        }
        kept: list[nn.Module] = []
        names: dict[str, Any] = {"recording": recording, "kept": kept}
        with (
            mock.patch.object(sys, "argv", ["main.py", *arguments.split()]),
            suppress(SystemExit),
            redirect_stdout(None),
        ):
            run_source("main.py", edits, name="__main__", session=session, **names)
        return state(kept[0])


def papers_own_code(session: Session) -> Trained:
    """Train by the code of "No Wrong Turns": its first run, which finds x*."""
    wandb = ModuleType("wandb")
    wandb.log = lambda *_: None  # type: ignore[attr-defined]
    summary = ModuleType("torchsummary")
    summary.summary = lambda *_, **__: None  # type: ignore[attr-defined]
    modules = {"wandb": wandb, "torchsummary": summary}
    with (
        checkout("LossLandscapeGeometry", "src", **modules) as recording,
        ExitStack() as patches,
    ):
        from torchvision import datasets

        patches.enter_context(
            mock.patch.object(datasets, "CIFAR10", lambda *_, **__: images(200))
        )
        kept: list[nn.Module] = []
        source = Path("main_image_classification.py").read_text()
        first = source.index("    # Initialize scheduler\n")  # of the first run only
        source = (
            source[:first]
            + "    kept.append(model)\n    "
            + ENTER.format(arguments="model, opt, steps_per_epoch=len(train_loader)")
            + "\n"
            + source[first:]
        )
        names: dict[str, Any] = {
            "__name__": "code", "session": session, "recording": recording, "kept": kept
        }  # fmt: skip
        exec(compile(source, "main_image_classification.py", "exec"), names)
        settings = {
            "device": "cpu", "seed": 0, "model": "resnet18_1_cifar", "num_classes": 10,
            "dataset": "cifar10", "num_gpu": 1, "data_root": ".", "batch_size": 20,
            "num_workers": 0, "opt": "momentum_sgd", "lr": 0.01, "weight_decay": 5e-4,
            "momentum": 0.9, "eps": 1e-8, "beta_1": 0.9, "beta_2": 0.999,
            "use_scheduler": False, "epochs_budget": 2,
        }  # fmt: skip
        names["get_xstar"](settings)
        return state(kept[0])


CODES: list[Code] = [
    Code("No Wrong Turns, ResNet-18", "Hiroki11x/LossLandscapeGeometry", 1, papers_own_code),
    Code("nanoGPT train.py", "karpathy/nanoGPT", 1, nano_gpt),
    Code("minGPT trainer", "karpathy/minGPT", 3, min_gpt),
    Code("pytorch-cifar", "kuangliu/pytorch-cifar", 1, cifar_repository),
    Code("SAM example", "davda54/sam", 1, sam),
    Code("edge of stability, gd.py", "locuslab/edge-of-stability", 1, edge_of_stability),
    Code("schedule_free MNIST", "facebookresearch/schedule_free", 1, schedule_free_example),
    Code("Muon with Adam", "KellerJordan/Muon", 1, muon),
    Code("word_language_model", "pytorch/examples", 4, word_language_model),
]  # fmt: skip
