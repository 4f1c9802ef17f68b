"""Images for calibration, evaluation and fine-tuning, from a folder or an npz file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"})


class Images:
    """Images of one size, normalised when they are read.

    Parameters
    ----------
    source : str
        A folder of images, with a folder per class where labels are wanted; or an npz file with
        one uint8 array (n, h, w, c) and, where labels are wanted, one of n integers. ``FILE:KEY``
        names the array of images, its labels are the array ``KEY`` with "images" replaced by
        "labels".
    size : tuple of int
        (c, h, w) that the network takes.
    mean, std : sequence of float
        Per channel, of pixels in 0..1.
    """

    def __init__(
        self, source: str, size: tuple[int, ...], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        if len(size) != 3:
            raise ValueError(f"{source}: images need --input-shape 1,C,H,W, got 1,{size}")
        self.size = size
        self._mean, self._std = (_per_channel(v, size[0]) for v in (mean, std))
        self._files: list[Path] = []
        self._pixels: np.ndarray[Any, Any] | None = None
        self.labels: Tensor | None = None
        file, _, key = source.partition(".npz:")
        path = Path(file + ".npz" if key else source)
        if path.is_dir():
            self._read_folder(path)
        elif path.suffix == ".npz" and path.is_file():
            self._read_npz(path, key)
        else:
            raise FileNotFoundError(f"{path}: neither a folder of images nor an npz file")

    def __len__(self) -> int:
        return len(self._files) if self._pixels is None else len(self._pixels)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Images (n, c, h, w)."""
        return torch.stack([self._image(i) for i in indices])

    def spread(self, count: int) -> list[int]:
        """So many of them, evenly over all (folders are sorted by class)."""
        count = min(count, len(self))
        return [i * len(self) // count for i in range(count)]

    def batches(
        self, size: int, order: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with labels."""
        if self.labels is None:
            raise ValueError(
                "these images have no labels: give a folder with a folder per class, or an npz "
                "file with an array of labels"
            )
        indices = list(range(len(self))) if order is None else list(order)
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            yield self.take(part), self.labels[part]

    def _read_folder(self, path: Path) -> None:
        self._files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES)
        if not self._files:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
        classes = sorted({f.relative_to(path).parts[0] for f in self._files})
        if all(len(f.relative_to(path).parts) > 1 for f in self._files):
            self.labels = torch.tensor(
                [classes.index(f.relative_to(path).parts[0]) for f in self._files]
            )

    def _read_npz(self, path: Path, key: str) -> None:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            wide = [k for k, a in arrays.items() if a.ndim == 4 and a.dtype == np.uint8]
            if not key and len(wide) != 1:
                raise ValueError(
                    f"{path} holds {len(wide)} uint8 arrays (n, h, w, c): {wide}; name one as "
                    f"{path}:KEY"
                )
            name = key or wide[0]
            if name not in wide:
                raise ValueError(f"{path} holds no uint8 array (n, h, w, c) named {name!r}")
            self._pixels = arrays[name]
            other = name.replace("images", "labels")
            labels = arrays.get(other) if other != name else None
        if labels is not None:
            if labels.shape != (len(self._pixels),):
                raise ValueError(
                    f"{path}: {len(self._pixels)} images and labels of shape {labels.shape}"
                )
            self.labels = torch.from_numpy(labels.astype(np.int64))

    def _image(self, index: int) -> Tensor:
        channels, height, width = self.size
        if self._pixels is not None:
            pixels = self._pixels[index]
        else:
            try:
                from PIL import Image
            except ImportError as error:
                raise ImportError("image folders need Pillow: pip install pillow") from error
            with Image.open(self._files[index]) as image:
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        array = pixels[..., None] if pixels.ndim == 2 else pixels
        if array.shape[-1] != channels:
            raise ValueError(f"images of {array.shape[-1]} channels, the network takes {channels}")
        x = torch.from_numpy(array).movedim(-1, 0)[None].float() / 255
        if x.shape[2:] != (height, width):  # shorter side to size, then the middle
            scale = max(height / x.shape[2], width / x.shape[3])
            grown = (max(height, round(x.shape[2] * scale)), max(width, round(x.shape[3] * scale)))
            x = F.interpolate(x, grown, mode="bilinear", antialias=True, align_corners=False)
            top, left = (grown[0] - height) // 2, (grown[1] - width) // 2
            x = x[:, :, top : top + height, left : left + width]
        return (x[0] - self._mean) / self._std


class Shuffled:
    """Batches of labelled images for training: a new order each epoch, mirrored at random.

    Parameters
    ----------
    images : Images
    batch : int
    seed : int
        It and the number of the epoch decide what is drawn.
    part : slice
        Of every batch, for one of several processes that share it.
    """

    def __init__(self, images: Images, batch: int, seed: int, part: slice = slice(None)) -> None:
        self._images, self._batch, self._seed, self._part = images, batch, seed, part
        self._epoch = 0
        if len(images) < batch:
            raise ValueError(f"{len(images)} training images are fewer than a batch of {batch}")
        if not len(range(batch)[part]):
            raise ValueError(f"a batch of {batch} is less than one image for every process")

    def __len__(self) -> int:
        return len(self._images) // self._batch

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._images), generator=generator)
        rows = order[: len(self) * self._batch].view(-1, self._batch)[:, self._part]
        for x, y in self._images.batches(rows.shape[1], rows.flatten().tolist()):
            mirrored = torch.rand(self._batch, generator=generator)[self._part] < 0.5
            yield torch.where(mirrored[:, None, None, None], x.flip(3), x), y


class InOrder:
    """Batches of labelled images for evaluation, or of the part of them that a process has."""

    def __init__(self, images: Images, part: slice = slice(None), batch: int = 128) -> None:
        self._images, self._batch = images, batch
        self._order = range(len(images))[part]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._images.batches(self._batch, self._order)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise ValueError(f"--mean and --std need 1 or {channels} values, got {len(values)}")
    return torch.tensor(list(values) * (channels // len(values))).view(channels, 1, 1)
