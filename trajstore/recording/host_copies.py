"""Bring results from a device to the host, in the thread that needs them there.

A copy that training waits for would stop it until the device has done all that it was given.
On a CUDA device the writer's thread therefore works on a stream of its own, behind an event
that training leaves, and copies through pinned memory; neither the training thread nor its
stream waits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.run_spec import FLUSH_BYTES

Arrays = list[npt.NDArray[Any]]

T = TypeVar("T")

ALIGNMENT: Final = 16
"""Bytes; copies begin at multiples of it."""


class HostCopies:
    """Copies results of one device.

    Parameters
    ----------
    device : torch.device
        Where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._device = device
            self._stream = torch.cuda.Stream(device)
            self._event = torch.cuda.Event()
            # Waiting for it leaves the processor to others.
            self._copied = torch.cuda.Event(blocking=True)
            self._staging = Staging(FLUSH_BYTES, self._wait, pin=True)

    def as_here(self, job: Callable[[], T]) -> Callable[[], T]:
        """Return a job for another thread that goes on with the current stream of this one.

        Parameters
        ----------
        job : callable
            Takes nothing.

        Returns
        -------
        callable
            The same, on the stream.
        """
        if self._stream is None:
            return job
        stream = torch.cuda.current_stream(self._device)

        def on_stream() -> T:
            with torch.cuda.stream(stream):
                return job()

        return on_stream

    def mark(self) -> None:
        """Note that results are complete with what the current stream has been given."""
        if self._stream is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def after_mark(self) -> Iterator[None]:
        """Work on results, in another thread than the one that has marked them."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._event)
            yield

    def fetch(self, tensors: Sequence[Tensor]) -> Arrays:
        """Return the values of tensors; inside `after_mark`.

        Parameters
        ----------
        tensors : sequence of torch.Tensor
            On the device, or on the CPU.

        Returns
        -------
        list of numpy.ndarray
            Of tensors on the CPU, the tensors' own memory.
        """
        if self._stream is None or all(tensor.is_cpu for tensor in tensors):
            return to_numpy(tensors)
        return self._staging.fetch(tensors)

    def _wait(self) -> None:
        # Unlike a stream's, an event's end may be waited for while the user has torch
        # complain of all that waits.
        self._copied.record(self._stream)
        self._copied.synchronize()


class Staging:
    """A piece of the host's memory that values pass through, many tensors at once.

    Parameters
    ----------
    n_bytes : int
        Its size, a multiple of `ALIGNMENT`.
    wait : callable
        Returns when all copies to it are done.
    pin : bool
        Whether the device may write to it while the host goes on.
    """

    def __init__(self, n_bytes: int, wait: Callable[[], None], *, pin: bool) -> None:
        self._memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pin)
        self._wait = wait
        # Where bytes go that are on their way, and the part of the memory they pass.
        self._on_the_way: list[tuple[npt.NDArray[np.uint8], slice]] = []
        self._n_used = 0

    def fetch(self, tensors: Sequence[Tensor]) -> Arrays:
        """Return the values of tensors, in arrays of their own.

        Parameters
        ----------
        tensors : sequence of torch.Tensor
            Of any sizes; of types that NumPy has.

        Returns
        -------
        list of numpy.ndarray
            Of the same shapes.
        """
        arrays = []
        for tensor in tensors:
            source = tensor.detach().contiguous().view(-1)
            array = np.empty(
                tensor.numel(), torch.empty(0, dtype=tensor.dtype).numpy().dtype
            )
            self._send(source.view(torch.uint8), array.view(np.uint8))
            arrays.append(array.reshape(tensor.shape))
        self._receive()
        return arrays

    def _send(self, source: Tensor, target: npt.NDArray[np.uint8]) -> None:
        """Have bytes copied, in parts where they do not fit."""
        start = 0
        while start < len(target):
            if self._n_used == len(self._memory):
                self._receive()
            n = min(len(target) - start, len(self._memory) - self._n_used)
            part = slice(self._n_used, self._n_used + n)
            self._memory[part].copy_(source[start : start + n], non_blocking=True)
            self._on_the_way.append((target[start : start + n], part))
            self._n_used = -(-part.stop // ALIGNMENT) * ALIGNMENT
            start += n

    def _receive(self) -> None:
        """Wait for the bytes on the way, and take them out of the memory."""
        if self._on_the_way:
            self._wait()
        memory = self._memory.numpy()
        for target, part in self._on_the_way:
            target[:] = memory[part]
        self._on_the_way.clear()
        self._n_used = 0


def to_numpy(tensors: Sequence[Tensor]) -> Arrays:
    """Return the values of tensors on any device; waits for them."""
    return [tensor.detach().cpu().numpy() for tensor in tensors]
