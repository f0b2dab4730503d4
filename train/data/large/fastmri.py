"""fastMRI: images of knees, to be reconstructed from a quarter of the measurements.

J. Zbontar et al., "fastMRI: An Open Dataset and Benchmarks for Accelerated MRI", 2018, arXiv
1811.08839: volumes of a single coil. As in that paper, the central 8 % of the columns of
k-space are kept and others at random, a quarter of all in expectation; images are 320 x 320
and normalised by their own mean and deviation. A slice keeps its random columns in all epochs,
so that the loss of a batch can be computed again.
"""

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from train.data import Splits
from train.data.digits import digits

SIZE: Final = 320
CENTRE: Final = 0.08
"""Share of the columns that is always kept."""

KEPT: Final = 0.25
"""Share of the columns that is kept in expectation."""

LARGEST: Final = 6.0
"""Normalised images are clipped to this number and its negative."""

STAND_IN_SIZE: Final = 32

DOWNLOAD_ADVICE: Final = (
    "Ask for the data at fastmri.med.nyu.edu, and pass the directory with "
    "singlecoil_train and singlecoil_val as --data-dir; or use --data embedded."
)


class Slice(NamedTuple):
    """Place of one slice in the files."""

    path: Path
    number: int


def fastmri(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load slices of knees, or enlarged digits as a stand-in."""
    if data == "embedded":
        train, validation = (DigitSlices(part.tensors[0][:, 0]) for part in digits())
        return Splits(train, validation, 1)
    return Splits(
        Slices(_files(directory, "train")), Slices(_files(directory, "val")), 1
    )


class DigitSlices(Dataset[Any]):
    """Digits, measured like knees."""

    def __init__(self, images: Tensor) -> None:
        size = (STAND_IN_SIZE, STAND_IN_SIZE)
        self._images = F.interpolate(images[:, None], size, mode="bilinear")[:, 0]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._images[index]
        return example(centred_fft(image.to(torch.complex64)), image, seed=index)


class Slices(Dataset[Any]):
    """Slices of volumes in HDF5 files."""

    def __init__(self, files: list[Path]) -> None:
        self._slices: list[Slice] = []
        for path in files:
            with _hdf5().File(path) as file:
                _check(file, path)
                self._slices += [Slice(path, i) for i in range(len(file["kspace"]))]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, i = self._slices[index]
        with _hdf5().File(path) as file:
            kspace = torch.from_numpy(file["kspace"][i].astype(np.complex64))
            image = torch.from_numpy(file["reconstruction_esc"][i].astype(np.float32))
        return example(kspace, image, seed=index)


def example(kspace: Tensor, image: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return an image from part of k-space and the whole image, each float32 (1, H, W)."""
    blurred = centred_crop(
        centred_ifft(kspace * kept_columns(kspace.shape[1], seed)).abs(), image.shape
    )
    mean, deviation = blurred.mean(), blurred.std(correction=0)
    pair = torch.stack([blurred, image])
    inputs, target = ((pair - mean) / deviation).clamp(-LARGEST, LARGEST)[:, None]
    return inputs, target


def kept_columns(n: int, seed: int) -> Tensor:
    """Return 1 for columns of k-space that are kept and 0 for others, float32 (n,)."""
    n_centre = int(n * CENTRE)
    first = (n - n_centre + 1) // 2
    generator = torch.Generator().manual_seed(seed)
    share = (n * KEPT - n_centre) / (n - n_centre)
    kept = (torch.rand(n, generator=generator) < share).float()
    kept[first : first + n_centre] = 1
    return kept


def centred_fft(image: Tensor) -> Tensor:
    """Return the unitary Fourier transform with frequency 0 in the centre."""
    moved: Tensor = torch.fft.ifftshift(image)
    shifted: Tensor = torch.fft.fftshift(torch.fft.fft2(moved, norm="ortho"))
    return shifted


def centred_ifft(kspace: Tensor) -> Tensor:
    """Invert `centred_fft`."""
    moved: Tensor = torch.fft.ifftshift(kspace)
    shifted: Tensor = torch.fft.fftshift(torch.fft.ifft2(moved, norm="ortho"))
    return shifted


def centred_crop(image: Tensor, shape: Any) -> Tensor:
    """Return the centre of an image."""
    top, left = ((n - m) // 2 for n, m in zip(image.shape, shape, strict=True))
    return image[top : top + shape[0], left : left + shape[1]]


def _files(directory: str | None, split: str) -> list[Path]:
    """Return the files of a split."""
    if directory is None:
        raise FileNotFoundError(f"fastMRI: no directory was given. {DOWNLOAD_ADVICE}")
    names = (f"singlecoil_{split}", f"knee_singlecoil_{split}")
    files = [path for name in names for path in (Path(directory) / name).glob("*.h5")]
    if not files:
        raise FileNotFoundError(
            f"fastMRI: there are no .h5 files in {directory}/singlecoil_{split}. "
            f"{DOWNLOAD_ADVICE}"
        )
    return sorted(files)


def _check(file: Any, path: Path) -> None:
    """Refuse a file that is no volume of a single coil."""
    missing = {"kspace", "reconstruction_esc"} - set(file)
    if missing or file["kspace"].ndim != 3:
        found = file["kspace"].shape if not missing else sorted(file)
        raise ValueError(
            f"{path} is no volume of a single coil: expected kspace (slice, row, column) "
            f"and reconstruction_esc, found {found}."
        )


def _hdf5() -> Any:
    """Import h5py late, because embedded data do not need it."""
    try:
        import h5py  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fastMRI is read with h5py, which is not installed. Use --data embedded, or "
            'run\npip install "trajstore[analyze]"'
        ) from error
    return h5py
