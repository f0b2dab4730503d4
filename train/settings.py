"""Settings of one training run."""

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Suppress, arg

# Settings that may be absent, with the names of their values in the help.
Count = Annotated[int | None, arg(metavar="INT")]
Number = Annotated[float | None, arg(metavar="FLOAT")]
Text = Annotated[str | None, arg(metavar="TEXT")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings of one training run: everything that is needed to repeat it.

    Attributes
    ----------
    workload : str
        Name of a workload in `train.workloads.catalogue.WORKLOADS`.
    data : {"true", "embedded"}
        The data set itself, or a small stand-in that needs no download.
    data_dir : str or None
        Directory of the data set. Default: Hugging Face's cache.
    epochs : int
        Number of passes over the training data.
    batch_size : int
        Number of examples in a batch; an incomplete last batch is dropped.
    optimizer : str
        sgd is plain SGD, momentum has a momentum of 0.9, and nadamw is NAdam with decoupled
        weight decay; nsgd (normalised SGD with a momentum of 0.9), spsmax and ngn are those of
        `trajstore.optim`; sign-sgd, lion, muon (AdamW for all but hidden matrices) and soap
        are those of pytorch-optimizer.
    lr : float
        Learning rate, or its largest value under a schedule. For nsgd, the length of a step;
        for spsmax and ngn, the largest step size.
    weight_decay : float
        The optimizer adds the parameters times this number to the gradient; adamw, nadamw
        and pytorch-optimizer's instead shrink the parameters by this number times the learning
        rate. Must be 0 for
        nsgd, spsmax and ngn.
    beta1, beta2 : float or None
        Coefficients of the first and second moment, for adam, adamw and nadamw. Default:
        those of torch, 0.9 and 0.999.
    schedule : {"constant", "cosine", "last-epoch-tenth", "one-cycle", "decaying"}
        Schedule of the learning rate. cosine falls to `final_lr`; last-epoch-tenth divides the
        learning rate and the weight decay by ten in the last epoch; one-cycle rises and
        falls; decaying divides the learning rate by k^(3/4) at step k, counted from 1
        after the warmup.
    final_lr : float
        Learning rate at the end of a cosine.
    warmup_epochs : int
        Number of epochs during which the learning rate rises linearly.
    warmup_fraction : float
        The same as a share of all steps; one of the two must be 0.
    width : int or None
        Width of the model, for workloads whose width can be chosen.
    seed : int
        Seed of the initial parameters, the order of examples and all other random numbers.
    control : {"none", "random-labels", "label-noise", "noise-gradients", "random-walk"}
        Null model. random-labels permutes all labels once; label-noise draws new labels for
        every step; noise-gradients replaces each gradient with noise of the same norm;
        random-walk replaces each gradient with a random direction of norm 1, and always uses
        plain SGD without weight decay.
    clip : float or None
        Largest norm of a gradient; longer gradients are scaled down before recording.
    full_batch : bool
        Take each step with the gradient of all training data.
    measure_every : int
        Number of steps between records of the gradients of ten fixed batches; 0 for never.
    full_gradients : bool
        Record the gradient of all training data at the start of every epoch.
    same_batch_every : int
        Number of steps between measurements that compute the gradient of a step's batch again
        after the step; 0 for never.
    sharpness_every : int
        Number of steps between measurements of the largest eigenvalue of the Hessian; 0 for
        never.
    sharpness_examples : int
        Number of training examples in the loss whose Hessian is measured; the first ones are
        used.
    n_eigenvalues : int
        Number of eigenvalues of the Hessian to log, in descending order.
    kernel_every : int
        Number of steps between measurements of the tangent kernel; 0 for never.
    kernel_examples : int
        Number of training examples whose tangent kernel is measured; the first ones are used.
    output_scale : float
        Factor of the model's outputs, from which the initial outputs are subtracted first; the
        loss is divided by its square. 1 leaves model and loss as they are; larger factors make
        training lazy (L. Chizat, E. Oyallon, F. Bach, "On Lazy Training in Differentiable
        Programming", NeurIPS 2019, arXiv 1812.07956).
    as_published : bool
        Follow the published code of "No Wrong Turns": the transformer attends across the
        batch, and the weight decay stays unchanged in the last epoch.
    record_samples : bool
        Record the indices of the examples in every step, for the replay command.
    max_steps : int or None
        Number of steps after which the run ends.
    device : str or None
        Device, as torch names it. Default: an accelerator if available, otherwise the CPU.
    num_workers : int
        Number of processes that load data.
    """

    workload: Annotated[str, Suppress]
    data: Literal["true", "embedded"] = "true"
    data_dir: Text = None
    epochs: int
    batch_size: int
    optimizer: Literal[
        "sgd",
        "momentum",
        "adam",
        "adamw",
        "nadamw",
        "nsgd",
        "spsmax",
        "ngn",
        "sign-sgd",
        "lion",
        "muon",
        "soap",
    ]
    lr: float
    weight_decay: float = 0.0
    beta1: Number = None
    beta2: Number = None
    schedule: Literal[
        "constant", "cosine", "last-epoch-tenth", "one-cycle", "decaying"
    ] = "constant"
    final_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_fraction: float = 0.0
    width: Count = None
    seed: int = 0
    control: Literal[
        "none", "random-labels", "label-noise", "noise-gradients", "random-walk"
    ] = "none"
    clip: Number = None
    full_batch: bool = False
    measure_every: int = 0
    full_gradients: bool = False
    same_batch_every: int = 0
    sharpness_every: int = 0
    sharpness_examples: int = 5000
    n_eigenvalues: int = 1
    kernel_every: int = 0
    kernel_examples: int = 16
    output_scale: float = 1.0
    as_published: bool = False
    record_samples: bool = False
    max_steps: Count = None
    device: Text = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse settings of the wrong kind or out of range."""
        for name, kind in get_type_hints(type(self)).items():
            _check_kind(name, getattr(self, name), kind)
        minima: dict[str, tuple[Any, float]] = {
            "epochs": (self.epochs, 1),
            "batch_size": (self.batch_size, 1),
            "lr": (self.lr, 0),
            "weight_decay": (self.weight_decay, 0),
            "final_lr": (self.final_lr, 0),
            "warmup_epochs": (self.warmup_epochs, 0),
            "warmup_fraction": (self.warmup_fraction, 0),
            "measure_every": (self.measure_every, 0),
            "width": (1 if self.width is None else self.width, 1),
            "same_batch_every": (self.same_batch_every, 0),
            "sharpness_every": (self.sharpness_every, 0),
            "sharpness_examples": (self.sharpness_examples, 1),
            "n_eigenvalues": (self.n_eigenvalues, 1),
            "kernel_every": (self.kernel_every, 0),
            "kernel_examples": (self.kernel_examples, 1),
            "clip": (1 if self.clip is None else self.clip, 0),
            "max_steps": (1 if self.max_steps is None else self.max_steps, 1),
        }
        for name, (value, bound) in minima.items():
            # This form of the comparison also refuses NaN.
            if not value >= bound:
                raise ValueError(f"{name}: expected at least {bound}, got {value}.")
        if not self.output_scale > 0:
            raise ValueError(
                f"output_scale: expected a positive number, got {self.output_scale}."
            )
        self._check_moments_and_warmup()
        if self.weight_decay and self.optimizer in {"nsgd", "spsmax", "ngn"}:
            raise ValueError(
                f"weight_decay: expected 0 with {self.optimizer}, which does not support "
                f"weight decay, got {self.weight_decay}."
            )
        is_noise = self.control in {"noise-gradients", "random-walk"}
        if self.same_batch_every and (is_noise or self.clip is not None):
            conflict = f"control={self.control!r}" if is_noise else f"clip={self.clip}"
            raise ValueError(
                "same_batch_every compares the gradients before and after a step, but "
                f"{conflict} changes the first gradient; leave out one of the two settings."
            )

    def _check_moments_and_warmup(self) -> None:
        """Refuse coefficients that the optimizer does not have, and two kinds of warmup."""
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if value is None:
                continue
            if self.optimizer not in WITH_MOMENTS:
                raise ValueError(
                    f"{name}: only {', '.join(WITH_MOMENTS)} have it, but the optimizer is "
                    f"{self.optimizer}; leave it out."
                )
            if not 0 <= value < 1:
                raise ValueError(
                    f"{name}: expected at least 0 and less than 1, got {value}."
                )
        if not self.warmup_fraction < 1 or (
            self.warmup_fraction and self.warmup_epochs
        ):
            raise ValueError(
                "The warmup is a number of epochs or a share of the steps below 1, got "
                f"warmup_epochs={self.warmup_epochs} and "
                f"warmup_fraction={self.warmup_fraction}."
            )


WITH_MOMENTS: Final = ("adam", "adamw", "nadamw")
"""Optimizers with coefficients of a first and a second moment."""

KIND_NAMES: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "nothing",
}
"""Names of types in error messages."""


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that the field's annotation does not allow."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        if value not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {value!r}.")
        return
    kinds = choices or (kind,)
    # An int passes as a float, but a bool passes as neither.
    actual = float if type(value) is int and float in kinds else type(value)
    if not any(issubclass(actual, k) for k in kinds if (k is bool) == (actual is bool)):
        expected = " or ".join(KIND_NAMES[k] for k in kinds)
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
