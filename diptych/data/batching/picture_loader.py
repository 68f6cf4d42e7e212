"""Pictures of a step: each read, decoded and resized once, and put into a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.data.batching.batch import Batch
from diptych.data.pixels.augment import Augment
from diptych.data.pixels.image import decode
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.pixels.tiling import Tiles
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


class Shown(NamedTuple):
    """One picture as a batch takes it.

    Attributes:
        array: its tiles' pixels [S, 3, H, W], or their features [S, N, C].
        tiles: how it is cut.
    """

    array: np.ndarray
    tiles: Tiles

    @property
    def is_features(self) -> bool:
        """Whether the encoder has seen it."""
        return self.array.ndim == 3


class FeatureReader(Protocol):
    """Looks up cached encoder features by image key."""

    def get(self, key: str) -> Shown | None: ...


@dataclass
class PictureLoader:
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

    def load(self, items: Sequence[Item]) -> tuple[list[list[str]], dict[str, Shown], dict]:
        """Keys per item, pictures by key, and errors by item number."""
        keys: list[list[str]] = []
        errors: dict[int, DiptychError] = {}
        read: dict[tuple[ReadImage, Image, int | None], str] = {}
        with _Decoding(self.num_threads) as decoding:
            for number, item in enumerate(items):
                own: list[str] = []
                try:
                    images = list(item.sample.images())
                    most = self.preprocessing.tiles.share(len(images))
                    for image in images:
                        key = read.get((item.read, image, most))
                        if key is None:
                            data = item.read(image)
                            key = picture_key(hashlib.sha256(data).hexdigest(), most)
                            decoding.start(
                                key, self._shown, key, data, image.path, item.visit, most
                            )
                            read[item.read, image, most] = key
                        own.append(key)
                except DiptychError as error:
                    errors[number] = error
                keys.append(own)
            pictures, failed = decoding.finished()
        for number, own in enumerate(keys):
            if number not in errors and (wrong := [k for k in own if k in failed]):
                errors[number] = failed[wrong[0]]
        return keys, pictures, errors

    def _shown(self, key: str, data: bytes, where: str, visit: int, most: int | None) -> Shown:
        if self.features is not None and (cached := self.features.get(key)) is not None:
            return cached
        picture = decode(data, where=where)
        if self.augment is not None:
            picture = self.augment.apply(picture, visit)
        return shown(picture, self.preprocessing, scaled=self.scaled, most=most)


def picture_key(sha256: str, most: int | None) -> str:
    """What a picture is known by: its bytes, and the tiles that it may have where they are few."""
    return sha256 if most is None else f"{sha256}/{most}"


def shown(
    picture: Pillow.Image,
    preprocessing: Preprocessing,
    *,
    scaled: bool = False,
    most: int | None = None,
) -> Shown:
    """A decoded picture, cut into tiles and each preprocessed.

    Args:
        scaled: normalised, float32; else uint8.
        most: tiles that it may have (`TilingConfig.share`).
    """
    tiles = preprocessing.tiles.plan(*picture.size, most)
    one = preprocessing.apply if scaled else preprocessing.pixels
    arrays = [one(tile) for tile in tiles.cut(picture)]
    # Most pictures are one tile, whose memory is taken as it is.
    return Shown(arrays[0][None] if len(arrays) == 1 else np.stack(arrays), tiles)


class _Decoding:
    """Work on pictures, each once, in a few threads; no more of it waits than keeps them busy.

    Decoders and Pillow's resizing let other threads run.
    """

    def __init__(self, num_threads: int):
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._most = 2 * num_threads
        self._waiting: dict[str, Future[Shown]] = {}
        self._pictures: dict[str, Shown] = {}
        self._failed: dict[str, DiptychError] = {}

    def __enter__(self) -> _Decoding:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, key: str, work: Callable[..., Shown], *given: Any) -> None:
        """Begin with a picture, unless it was."""
        if key in self._waiting or key in self._pictures or key in self._failed:
            return
        if self._pool is None:
            self._take(key, lambda: work(*given))
            return
        if len(self._waiting) == self._most:
            first = next(iter(self._waiting))
            self._take(first, self._waiting.pop(first).result)
        self._waiting[key] = self._pool.submit(work, *given)

    def finished(self) -> tuple[dict[str, Shown], dict[str, DiptychError]]:
        """Pictures and errors by key, when all is done."""
        for key, future in self._waiting.items():
            self._take(key, future.result)
        self._waiting.clear()
        return self._pictures, self._failed

    def _take(self, key: str, result: Callable[[], Shown]) -> None:
        try:
            self._pictures[key] = result()
        except DiptychError as error:
            self._failed[key] = error


def attach(batch: Batch, pictures: dict[str, Shown], cached: bool) -> None:
    """Give a batch its pictures: pixels of all tiles [S, 3, H, W], or cached features [S, N, C].

    Args:
        pictures: by image key.
        cached: whether features are looked up; those missing arrive as pixels.

    Raises:
        ModelError: some pictures are features and others pixels; a model reads one or the other.
    """
    if not batch.image_keys:
        return
    found = {key: pictures[key] for key in batch.image_keys}
    fresh = [key for key, picture in found.items() if not picture.is_features]
    if 0 < len(fresh) < len(found):
        raise ModelError(
            f"the feature cache holds {len(found) - len(fresh)} of the {len(found)} pictures of a "
            "batch",
            where=", ".join(fresh[:3]),
            fix="pictures changed or the cache was cut short while the run went on: give the same "
            "command again, or set the stage's cache_features=off",
        )
    batch.tiles = tuple(found[key].tiles for key in batch.image_keys)
    joined = _joined([found[key].array for key in batch.image_keys])
    if cached and not fresh:
        # numpy has no bfloat16; the cache keeps its bits as uint16.
        is_bits = joined.dtype == torch.uint16
        batch.features = joined.view(torch.bfloat16) if is_bits else joined
    else:
        batch.pixel_values = joined


def _joined(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """[S, ...]; in a loader's worker at once in the memory that the other process sees."""
    if torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(np.concatenate(arrays))
    first = torch.from_numpy(arrays[0])
    shape = (sum(map(len, arrays)), *first.shape[1:])
    storage = first.untyped_storage()._new_shared(math.prod(shape) * first.element_size())
    joined = first.new(storage).view(shape)
    np.concatenate(arrays, out=joined.numpy())
    return joined
