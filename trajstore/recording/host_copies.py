"""Copy results from a device to the host without making training wait.

On a CUDA device the writer thread has its own stream. This stream waits for an event that the
training thread records, and copies through pinned memory. Neither the training thread nor
its stream waits. A copy made by the training thread would wait for all queued device work.
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
"""Every copy begins at a multiple of this number of bytes."""


class HostCopies:
    """Copy results from one device to the host."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self.is_needed = device.type == "cuda"
        """Whether results are not in the memory of the host already."""
        if self.is_needed:
            self._device = device
            self._stream = torch.cuda.Stream(device)
            self._event = torch.cuda.Event()
            # While a thread waits for a blocking event, other threads can use its core.
            self._copied = torch.cuda.Event(blocking=True)
            self._staging = Staging(FLUSH_BYTES, self._wait, pin=True)

    def on_current_stream(self, job: Callable[[], T]) -> Callable[[], T]:
        """Make a job run on this thread's current stream when another thread calls it."""
        if self._stream is None:
            return job
        stream = torch.cuda.current_stream(self._device)

        def job_on_stream() -> T:
            with torch.cuda.stream(stream):
                return job()

        return job_on_stream

    def mark(self) -> None:
        """Mark results that are complete when the current stream's queued work is done."""
        if self._stream is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def after_mark(self) -> Iterator[None]:
        """Run the block on the writer thread's stream, which waits for the marked results."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._event)
            yield

    def fetch(self, tensors: Sequence[Tensor]) -> Arrays:
        """Return the values of tensors as arrays; call this within `after_mark`."""
        # Arrays of CPU tensors share the memory of the tensors.
        if self._stream is None or all(tensor.is_cpu for tensor in tensors):
            return to_numpy(tensors)
        return self._staging.fetch(tensors)

    def _wait(self) -> None:
        # If the user has enabled torch's synchronisation warnings, torch warns about waiting
        # for a stream, but not about waiting for an event.
        self._copied.record(self._stream)
        self._copied.synchronize()


class Staging:
    """Copy many tensors in one batch, through host memory of a fixed size."""

    def __init__(self, n_bytes: int, wait: Callable[[], None], *, pin: bool) -> None:
        # `n_bytes` is a multiple of ALIGNMENT; `wait` returns when all copies are done.
        self._memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pin)
        self._wait = wait
        # Target arrays of the bytes in transit, and the slices of the memory they are in.
        self._in_transit: list[tuple[npt.NDArray[np.uint8], slice]] = []
        self._n_used = 0

    def fetch(self, tensors: Sequence[Tensor]) -> Arrays:
        """Copy the values of tensors, of any sizes, into new arrays of the same shapes."""
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
        """Start to copy bytes, in parts if they do not fit into the free memory."""
        start = 0
        while start < len(target):
            if self._n_used == len(self._memory):
                self._receive()
            n = min(len(target) - start, len(self._memory) - self._n_used)
            part = slice(self._n_used, self._n_used + n)
            self._memory[part].copy_(source[start : start + n], non_blocking=True)
            self._in_transit.append((target[start : start + n], part))
            self._n_used = -(-part.stop // ALIGNMENT) * ALIGNMENT
            start += n

    def _receive(self) -> None:
        """Wait for the bytes in transit, and move them to their targets."""
        if self._in_transit:
            self._wait()
        memory = self._memory.numpy()
        for target, part in self._in_transit:
            target[:] = memory[part]
        self._in_transit.clear()
        self._n_used = 0


def to_numpy(tensors: Sequence[Tensor]) -> Arrays:
    """Wait for the device of tensors, and return their values as arrays."""
    return [tensor.detach().cpu().numpy() for tensor in tensors]
