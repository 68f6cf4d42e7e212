"""Pictures of a step: each read, decoded and resized once, and put into a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from diptych.data.batching.batch import Batch
from diptych.data.pixels.augment import Augment
from diptych.data.pixels.image import decode
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.sample import Image, Sample
from diptych.errors import DiptychError, ModelError

ReadImage = Callable[[Image], bytes]


@dataclass(frozen=True)
class Item:
    """A sample with the way to its pictures' bytes."""

    sample: Sample
    read: ReadImage
    visit: int = 0
    """Which visit of the run this is; what is random about a sample depends on it."""


class FeatureReader(Protocol):
    """Looks up cached encoder features by image key."""

    def get(self, key: str) -> np.ndarray | None: ...


@dataclass
class Pictures:
    """Decodes and preprocesses pictures; each distinct picture of a step once.

    With `features`, a cached picture is neither decoded nor preprocessed. With `augment`, a picture
    is varied by the visit of the first sample of the step that shows it.

    Args:
        num_threads: pictures that are decoded at once.
        scaled: normalised here already, float32: where a CPU trains, it has more to do than those
            who decode, and nothing is gained by sending a quarter.
    """

    preprocessing: Preprocessing
    features: FeatureReader | None = None
    augment: Augment | None = None
    num_threads: int = 1
    scaled: bool = False

    def load(self, items: Sequence[Item]) -> tuple[list[list[str]], dict[str, np.ndarray], dict]:
        """Keys per item, arrays by key, and errors by item number."""
        keys: list[list[str]] = []
        errors: dict[int, DiptychError] = {}
        read: dict[tuple[ReadImage, Image], str] = {}
        with _Decoding(self.num_threads) as decoding:
            for number, item in enumerate(items):
                own: list[str] = []
                try:
                    for image in item.sample.images():
                        key = read.get((item.read, image))
                        if key is None:
                            data = item.read(image)
                            key = hashlib.sha256(data).hexdigest()
                            decoding.start(key, self._array, key, data, image.path, item.visit)
                            read[item.read, image] = key
                        own.append(key)
                except DiptychError as error:
                    errors[number] = error
                keys.append(own)
            arrays, failed = decoding.finished()
        for number, own in enumerate(keys):
            if number not in errors and (wrong := [k for k in own if k in failed]):
                errors[number] = failed[wrong[0]]
        return keys, arrays, errors

    def _array(self, key: str, data: bytes, where: str, visit: int) -> np.ndarray:
        if self.features is not None and (cached := self.features.get(key)) is not None:
            return cached
        picture = decode(data, where=where)
        if self.augment is not None:
            picture = self.augment.apply(picture, visit)
        return (self.preprocessing.apply if self.scaled else self.preprocessing.pixels)(picture)


class _Decoding:
    """Work on pictures, each once, in a few threads; no more of it waits than keeps them busy.

    Decoders and Pillow's resizing let other threads run.
    """

    def __init__(self, num_threads: int):
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._most = 2 * num_threads
        self._waiting: dict[str, Future[np.ndarray]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._failed: dict[str, DiptychError] = {}

    def __enter__(self) -> _Decoding:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, key: str, work: Callable[..., np.ndarray], *given: Any) -> None:
        """Begin with a picture, unless it was."""
        if key in self._waiting or key in self._arrays or key in self._failed:
            return
        if self._pool is None:
            self._take(key, lambda: work(*given))
            return
        if len(self._waiting) == self._most:
            first = next(iter(self._waiting))
            self._take(first, self._waiting.pop(first).result)
        self._waiting[key] = self._pool.submit(work, *given)

    def finished(self) -> tuple[dict[str, np.ndarray], dict[str, DiptychError]]:
        """Arrays and errors by key, when all is done."""
        for key, future in self._waiting.items():
            self._take(key, future.result)
        self._waiting.clear()
        return self._arrays, self._failed

    def _take(self, key: str, result: Callable[[], np.ndarray]) -> None:
        try:
            self._arrays[key] = result()
        except DiptychError as error:
            self._failed[key] = error


def attach(batch: Batch, arrays: dict[str, np.ndarray], cached: bool) -> None:
    """Give a batch its pictures: pixels [V, 3, H, W], or cached features [V, K, C].

    Args:
        arrays: by image key, one picture's pixels uint8 [3, H, W] or features [K, C].
        cached: whether features are looked up; those missing arrive as pixels.

    Raises:
        ModelError: some pictures are features and others pixels; a model reads one or the other.
    """
    if not batch.image_keys:
        return
    found = {key: arrays[key] for key in batch.image_keys}
    fresh = [key for key, array in found.items() if array.ndim == 3]
    if 0 < len(fresh) < len(found):
        raise ModelError(
            f"the feature cache holds {len(found) - len(fresh)} of the {len(found)} pictures of a "
            "batch",
            where=", ".join(fresh[:3]),
            fix="pictures changed or the cache was cut short while the run went on: give the same "
            "command again, or set the stage's cache_features=off",
        )
    stacked = _stacked([found[key] for key in batch.image_keys])
    if cached and not fresh:
        # numpy has no bfloat16; the cache keeps its bits as uint16.
        is_bits = stacked.dtype == torch.uint16
        batch.features = stacked.view(torch.bfloat16) if is_bits else stacked
    else:
        batch.pixel_values = stacked


def _stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """[V, ...]; in a loader's worker at once in the memory that the other process sees."""
    if torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(np.stack(arrays))
    first = torch.from_numpy(arrays[0])
    shape = (len(arrays), *first.shape)
    storage = first.untyped_storage()._new_shared(math.prod(shape) * first.element_size())
    stacked = first.new(storage).view(shape)
    np.stack(arrays, out=stacked.numpy())
    return stacked
