"""Training codes of distributions on the package index, on small random data."""

from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from harness import Code, Session, state
from torch import nn

from trajstore.integrations import accelerate as accelerate_recording
from trajstore.integrations import lightning as lightning_recording
from trajstore.integrations import transformers as transformers_recording

EPOCHS, BATCH, EXAMPLES = 4, 16, 160
STEPS = EXAMPLES // BATCH
INPUTS, CLASSES = 20, 5

Trained = Iterable[torch.Tensor]


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    """Return random inputs, and labels that depend on them."""
    inputs = torch.randn(EXAMPLES, INPUTS)
    return inputs, (inputs @ torch.randn(INPUTS, CLASSES)).argmax(1)


def perceptron() -> nn.Module:
    """Return a small network with batch normalisation."""
    return nn.Sequential(
        nn.Linear(INPUTS, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, CLASSES)
    )


def batches(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield shuffled batches of one epoch."""
    order = torch.randperm(len(tensors[0]))
    for part in order.split(BATCH):
        yield tuple(tensor[part] for tensor in tensors)


def plain_loop(
    session: Session,
    make_optimizer: Any,
    *,
    model: nn.Module | None = None,
    **options: Any,
) -> Trained:
    """Train with an optimizer from a package in an ordinary loop."""
    inputs, labels = examples()
    model = perceptron() if model is None else model
    optimizer = make_optimizer(model.parameters())
    with session.record(model, optimizer, steps_per_epoch=STEPS, **options):
        for _ in range(EPOCHS):
            for x, y in batches(inputs, labels):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    return state(model)


def of(package: str, name: str, **settings: Any) -> Any:
    """Return a constructor of a package's optimizer with settings."""
    return partial(getattr(import_module(package), name), **settings)


def schedule_free(name: str, **settings: Any) -> Any:
    """Return a constructor of a schedule-free optimizer in its mode for training."""

    def make(parameters: Any) -> Any:
        optimizer = of("schedulefree", name, **settings)(parameters)
        optimizer.train()
        return optimizer

    return make


def sharpness_aware(session: Session) -> Trained:
    """Train with SAM from pytorch_optimizer, in two steps."""
    package = import_module("pytorch_optimizer")
    inputs, labels = examples()
    model = perceptron()
    optimizer = package.SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    with session.record(model, optimizer.base_optimizer, steps_per_epoch=STEPS):
        for _ in range(EPOCHS):
            for x, y in batches(inputs, labels):
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.first_step(zero_grad=True)
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.second_step(zero_grad=True)
    return state(model)


def skorch_net(session: Session) -> Trained:
    """Train a skorch classifier; a callback opens and closes the recorder."""
    skorch = import_module("skorch")

    class Recording(skorch.callbacks.Callback):
        def on_train_begin(self, net: Any, **_: Any) -> None:
            self.recorder = session.record(
                net.module_, net.optimizer_, steps_per_epoch=STEPS
            )
            self.recorder.__enter__()

        def on_train_end(self, net: Any, **_: Any) -> None:
            self.recorder.__exit__(None, None, None)

    inputs, labels = examples()
    net = skorch.NeuralNetClassifier(
        perceptron(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.05,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[Recording()],
    )
    net.fit(inputs.numpy(), labels.numpy())
    return state(net.module_)


def ignite_engine(session: Session) -> Trained:
    """Train with ignite's supervised trainer."""
    engine = import_module("ignite.engine")
    inputs, labels = examples()
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = engine.create_supervised_trainer(
        model, optimizer, nn.functional.cross_entropy
    )
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    with session.record(model, optimizer, steps_per_epoch=STEPS):
        trainer.run(loader, max_epochs=EPOCHS)
    return state(model)


def lightning_trainer(session: Session) -> Trained:
    """Train with Lightning's trainer: clipping, accumulation and a schedule."""
    lightning = import_module("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
            return [optimizer], [schedule]

    inputs, labels = examples()
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH // 2, shuffle=True)
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        callbacks=session.callbacks(lightning_recording.TrajectoryCallback),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return state(module)


def tiny_gpt2() -> Any:
    """Return a GPT-2 of 2 layers with tied embeddings."""
    transformers = import_module("transformers")
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def transformers_trainer(session: Session, *, lora: bool = False) -> Trained:
    """Train a small GPT-2 with the trainer of transformers, whole or by adapters."""
    transformers = import_module("transformers")
    model = tiny_gpt2()
    if lora:
        peft = import_module("peft")
        adapted = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
        model = peft.get_peft_model(model, adapted)
    tokens = torch.randint(100, (EXAMPLES, 16))
    data = [{"input_ids": t, "labels": t} for t in tokens]
    arguments = transformers.TrainingArguments(
        "unused",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        callbacks=session.callbacks(transformers_recording.TrajectoryCallback),
    )
    trainer.train()
    return state(model)


def accelerate_loop(session: Session) -> Trained:
    """Train with Accelerate, two batches a step."""
    accelerate = import_module("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    inputs, labels = examples()
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH // 2, shuffle=True)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with session.record(
        accelerator,
        model,
        optimizer,
        steps_per_epoch=STEPS,
        recorder=accelerate_recording.record,
    ):
        for _ in range(EPOCHS):
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
    return state(model)


def timm_model(session: Session) -> Trained:
    """Train a vision model of timm with its optimizer, schedule and loss."""
    timm = import_module("timm")
    make_optimizer = import_module("timm.optim").create_optimizer_v2
    schedule_class = import_module("timm.scheduler").CosineLRScheduler
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    optimizer = make_optimizer(model, opt="sgd", lr=0.05, weight_decay=1e-4)
    schedule = schedule_class(optimizer, t_initial=EPOCHS)
    loss = import_module("timm.loss").LabelSmoothingCrossEntropy()
    images = torch.randn(EXAMPLES // 2, 3, 32, 32)
    labels = images.mean((2, 3)).argmax(1)
    with session.record(model, optimizer, steps_per_epoch=STEPS // 2):
        for epoch in range(EPOCHS):
            for x, y in batches(images, labels):
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
            schedule.step(epoch + 1)
    return state(model)


def graph_network(session: Session) -> Trained:
    """Train a graph network of PyTorch Geometric on a random graph, by the full batch."""
    geometric = import_module("torch_geometric.nn")
    x, edges = torch.randn(60, INPUTS), torch.randint(60, (2, 300))
    labels = x[:, :CLASSES].argmax(1)
    first, second = geometric.GCNConv(INPUTS, 16), geometric.GCNConv(16, CLASSES)
    model = nn.ModuleList([first, second])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    with session.record(model, optimizer, reference_every=10):
        for _ in range(40):
            optimizer.zero_grad()
            output = second(first(x, edges).relu(), edges)
            nn.functional.cross_entropy(output, labels).backward()
            optimizer.step()
    return state(model)


def gaussian_process(session: Session) -> Trained:
    """Train the hyperparameters of an exact Gaussian process of gpytorch."""
    gpytorch = import_module("gpytorch")

    class Process(gpytorch.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Any) -> Any:
            mean, kernel = self.mean(x), self.kernel(x)
            return gpytorch.distributions.MultivariateNormal(mean, kernel)

    x = torch.linspace(0, 1, 40)
    y = torch.sin(6 * x) + 0.2 * torch.randn(40)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Process(x, y, likelihood)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    model.train()
    with session.record(model, optimizer, reference_every=10):
        for _ in range(40):
            optimizer.zero_grad()
            (-objective(model(x), y)).backward()
            optimizer.step()
    return state(model)


def stable_baselines(session: Session) -> Trained:
    """Train an agent of stable-baselines3 with PPO on CartPole."""
    package = import_module("stable_baselines3")
    agent = package.PPO(
        "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=4, seed=0,
        device="cpu",
    )  # fmt: skip
    with session.record(agent.policy, agent.policy.optimizer, reference_every=20):
        agent.learn(512)
    return state(agent.policy)


def tabular_network(session: Session) -> Trained:
    """Train TabNet, whose own loop makes the optimizer; a callback records."""
    package = import_module("pytorch_tabnet.tab_model")
    callback_class = import_module("pytorch_tabnet.callbacks").Callback

    class Recording(callback_class):  # type: ignore[misc,valid-type]
        def on_train_begin(self, logs: Any = None) -> None:
            self.recorder = session.record(
                self.trainer.network, self.trainer._optimizer, reference_every=10
            )
            self.recorder.__enter__()

        def on_train_end(self, logs: Any = None) -> None:
            self.recorder.__exit__(None, None, None)

    inputs, labels = examples()
    classifier = package.TabNetClassifier(n_d=8, n_a=8, verbose=0, device_name="cpu")
    classifier.fit(
        inputs.numpy(),
        labels.numpy(),
        max_epochs=EPOCHS,
        batch_size=32,
        virtual_batch_size=16,
        callbacks=[Recording()],
    )
    return state(classifier.network)


def wrapped_transformer(session: Session) -> Trained:
    """Train a language model of x-transformers with clipping."""
    package = import_module("x_transformers")
    model = package.AutoregressiveWrapper(
        package.TransformerWrapper(
            num_tokens=100,
            max_seq_len=32,
            attn_layers=package.Decoder(dim=32, depth=2, heads=2),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(100, (EXAMPLES, 17))
    with session.record(model, optimizer, steps_per_epoch=STEPS):
        for _ in range(EPOCHS):
            for (x,) in batches(tokens):
                optimizer.zero_grad()
                model(x).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    return state(model)


def vision_transformer(session: Session) -> Trained:
    """Train a vision transformer of vit-pytorch."""
    model = import_module("vit_pytorch").ViT(
        image_size=32, patch_size=8, num_classes=CLASSES, dim=32, depth=2, heads=2,
        mlp_dim=64,
    )  # fmt: skip
    images = torch.randn(EXAMPLES, 3, 32, 32)
    labels = images.mean((2, 3)).argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with session.record(model, optimizer, steps_per_epoch=STEPS):
        for _ in range(EPOCHS):
            for x, y in batches(images, labels):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    return state(model)


def neural_equation(session: Session) -> Trained:
    """Fit a differential equation with torchdiffeq, by the full batch."""
    solve = import_module("torchdiffeq").odeint
    field = nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 2))
    times = torch.linspace(0, 1, 10)
    start = torch.tensor([1.0, 0.0])
    angle = 3 * times[:, None]
    truth = torch.cat([angle.cos(), angle.sin()], 1)
    optimizer = torch.optim.RMSprop(field.parameters(), lr=1e-3)
    with session.record(field, optimizer, reference_every=10):
        for _ in range(40):
            optimizer.zero_grad()
            path = solve(lambda _, y: field(y), start, times, method="rk4")
            (path - truth).square().mean().backward()
            optimizer.step()
    return state(field)


CODES: list[Code] = [
    Code("skorch NeuralNetClassifier", "skorch", 6, skorch_net),
    Code("ignite trainer", "pytorch-ignite", 1, ignite_engine),
    Code("Lightning trainer", "lightning", 1, lightning_trainer),
    Code("transformers Trainer, GPT-2", "transformers", 1, transformers_trainer),
    Code("the same with PEFT adapters", "peft", 1, partial(transformers_trainer, lora=True)),
    Code("Accelerate loop", "accelerate", 1, accelerate_loop),
    Code("timm ResNet", "timm", 1, timm_model),
    Code("PyTorch Geometric GCN", "torch-geometric", 1, graph_network),
    Code("gpytorch hyperparameters", "gpytorch", 1, gaussian_process),
    Code("stable-baselines3 PPO", "stable-baselines3", 1, stable_baselines),
    Code("TabNet", "pytorch-tabnet", 6, tabular_network),
    Code("x-transformers", "x-transformers", 1, wrapped_transformer),
    Code("vit-pytorch", "vit-pytorch", 1, vision_transformer),
    Code("torchdiffeq", "torchdiffeq", 1, neural_equation),
    Code("SAM", "pytorch-optimizer", 1, sharpness_aware),
    Code(
        "schedule-free AdamW", "schedulefree", 1,
        partial(plain_loop, make_optimizer=schedule_free("AdamWScheduleFree", lr=0.01)),
    ),
    Code(
        "schedule-free SGD", "schedulefree", 1,
        partial(plain_loop, make_optimizer=schedule_free("SGDScheduleFree", lr=0.1)),
    ),
    Code(
        "Lion", "lion-pytorch", 1,
        partial(plain_loop, make_optimizer=of("lion_pytorch", "Lion", lr=1e-3)),
    ),
    Code(
        "Prodigy", "prodigyopt", 1,
        partial(plain_loop, make_optimizer=of("prodigyopt", "Prodigy")),
    ),
    Code(
        "AdaBelief", "torch-optimizer", 1,
        partial(plain_loop, make_optimizer=of("torch_optimizer", "AdaBelief", lr=1e-2)),
    ),
    Code(
        "AdaFactor", "pytorch-optimizer", 1,
        partial(plain_loop, make_optimizer=of("pytorch_optimizer", "AdaFactor", lr=1e-2)),
    ),
]  # fmt: skip
