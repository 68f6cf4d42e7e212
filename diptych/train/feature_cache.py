"""Features of a frozen encoder, kept on disk.

One memory-mapped array, whose rows are tiles, and a table from picture to rows. A picture is known
by the hash of its bytes; the cache folder by the hash of the encoder's weights and preprocessing,
so changed weights or another size never meet old features. A later stage with other pictures adds
them. Bounded in size: what does not fit is not cached at all, so that a stage never mixes both
ways.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.data.batching.picture_loader import ReadImage, Shown, picture_key, shown
from diptych.data.pixels.image import decode
from diptych.data.pixels.tiling import Tiles
from diptych.data.sample import Image
from diptych.model.architecture import Model
from diptych.model.tensors import unique_tensors
from diptych.staging import flush, write_text

log = logging.getLogger(__name__)
_KEYS, _FEATURES = "keys.json", "features.bin"
_AT_ONCE = 32

_OPERATIONS_A_SECOND = {
    ("cpu", "float32"): 5e10, ("cpu", "bf16"): 5e10,
    ("accelerator", "float32"): 2e13, ("accelerator", "bf16"): 1e14,
}  # fmt: skip
_PICTURE_SECONDS, _ENTRY_SECONDS, _BYTES_A_SECOND = 5e-3, 1e-4, 1e9
"""What `auto` reckons with: an encoder's speed, reading and decoding a picture, reading or writing
an entry of the cache. Rough on purpose. A stopwatch would decide today so and tomorrow otherwise,
and features that are computed many at a time differ in their last bits: a run would not repeat."""


@dataclass
class FeatureCache:
    """Reads features by picture; picklable, each worker maps the file itself.

    Shapes: a picture's features are [S, N, C], float32 or the bits of bfloat16 as uint16.
    """

    folder: Path

    def __post_init__(self) -> None:
        meta = json.loads((self.folder / _KEYS).read_text())
        self._places: dict[str, tuple[int, Tiles]] = {}
        row = 0
        for key, *plan in meta["pictures"]:
            tiles = _tiles(*plan)
            self._places[key] = (row, tiles)
            row += len(tiles)
        self._map = np.memmap(
            self.folder / _FEATURES, dtype=meta["dtype"], mode="r", shape=(row, *meta["shape"])
        )

    @property
    def keys(self) -> Iterable[str]:
        """Content hashes of the pictures held, in the order of their rows."""
        return self._places

    @property
    def num_rows(self) -> int:
        """Tiles of all pictures."""
        return len(self._map)

    def plan(self, key: str) -> Tiles:
        """How a picture that is held is cut."""
        return self._places[key][1]

    def get(self, key: str) -> Shown | None:
        """A copy of the features, or None for an unknown picture."""
        place = self._places.get(key)
        if place is None:
            return None
        row, tiles = place
        return Shown(np.array(self._map[row : row + len(tiles)]), tiles)

    @property
    def entry_bytes(self) -> int:
        """Memory of one picture's features, on average."""
        return int(self._map.nbytes / max(1, len(self._places)))

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def fingerprint(model: Model, precision: str) -> str:
    """Changes with the encoder's weights, its preprocessing, the layer read or the precision."""
    digest = hashlib.sha256(model.config.vision_encoder.model_dump_json().encode())
    digest.update(precision.encode())
    for name, tensor in unique_tensors(model.vision_encoder).items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _stored(tiles: Tiles) -> list[Any]:
    """A plan as plain data; of one tile, as most are, the size alone."""
    if tiles == _whole(*tiles.of):
        return [*tiles.of]
    return [*tiles.of, {k: v for k, v in asdict(tiles).items() if k != "of"}]


def _tiles(width: int, height: int, cut: dict[str, Any] | None = None) -> Tiles:
    """A plan from plain data."""
    if cut is None:
        return _whole(width, height)
    pairs = {k: cut[k] and tuple(cut[k]) for k in ("size", "canvas")}
    boxes = tuple(map(tuple, cut["boxes"]))
    return Tiles((width, height), **{**cut, **pairs, "boxes": boxes})


@functools.lru_cache(None)
def _whole(width: int, height: int) -> Tiles:
    """One tile; the same object for all pictures of a size, of which there are few."""
    return Tiles((width, height), (width, height), ((0, 0, width, height),))


Picture = tuple[Image, ReadImage, str | None, int | None]
"""A picture, how its bytes are read, their SHA-256 where an index knows it, and the tiles that it
may have (`TilingConfig.share`)."""
Read = tuple[Image, ReadImage, int | None]
"""A picture, how its bytes are read, and the tiles that it may have."""


def prepare(
    model: Model,
    pictures: Iterable[Picture],
    root: Path,
    *,
    mode: str,
    num_visits: float,
    max_bytes: int,
    precision: str,
    progress: Any = None,
) -> FeatureCache | None:
    """Decide whether caching pays, and encode what the cache does not hold yet.

    `auto` reckons, from the operations of the encoder and the bytes of its features: with v
    visits of each picture, v * encode is compared to encode + write + v * read. The same recipe
    gets the same answer every time on machines of a kind; the log says it.

    Args:
        pictures: every picture of the stage, repetitions allowed.
        mode: of the stage (auto, on, off), or `decided`: on, as an earlier start found.
        num_visits: how often a stage looks at one picture.
        precision: `bf16` encodes under autocast, as training would.

    Returns:
        A cache that holds every picture of the stage, those of earlier stages too; or None.
    """
    if mode == "off" or (mode == "auto" and num_visits <= 1.0):
        return None
    folder = root / fingerprint(model, precision)
    before = FeatureCache(folder) if (folder / _KEYS).is_file() else None
    held = [] if before is None else [[key, *_stored(before.plan(key))] for key in before.keys]
    num_rows = 0 if before is None else before.num_rows
    wanted = _distinct(pictures)
    known = set() if before is None else set(before.keys)
    missing = {key: picture for key, picture in wanted.items() if key not in known}
    if not missing:
        log.info("feature cache: using %d pictures from before", len(wanted))
        return FeatureCache(folder) if wanted else None
    new = list(missing.items())
    first, _ = _encode(model, [new[0][1]], precision)
    # By the first picture: where pictures are cut differently, the others may have more tiles.
    needed = first.nbytes * (len(held) + len(new))
    if needed > max_bytes:
        log.info(
            "feature cache: off, %.1f GB needed and %.1f GB allowed (cache_bytes)",
            needed / 1e9, max_bytes / 1e9,
        )  # fmt: skip
        return None
    if mode == "auto":
        work = encode_seconds(model, new[0][1], precision)
        move = _ENTRY_SECONDS + first.nbytes / _BYTES_A_SECOND
        pays = work + move + num_visits * move < num_visits * work
        log.info(
            "feature cache: %s; per picture encode %.1f ms, write or read %.1f ms, %.1f visits",
            "on" if pays else "off, it would not pay", work * 1e3, move * 1e3, num_visits,
        )  # fmt: skip
        if not pays:
            return None
    folder.mkdir(parents=True, exist_ok=True)
    # Rows behind those of keys.json count for nothing until it names them.
    steps = range(0, len(new), _AT_ONCE)
    with (folder / _FEATURES).open("r+b" if held else "wb") as file:
        file.seek(num_rows * first[0].nbytes)
        for low in progress.track(steps, "cache features") if progress else steps:
            chunk = new[low : low + _AT_ONCE]
            features, plans = _encode(model, [picture for _, picture in chunk], precision)
            file.write(features.tobytes())
            held += [[key, *_stored(t)] for (key, _), t in zip(chunk, plans, strict=True)]
        file.truncate()
    flush(folder / _FEATURES)
    meta = {"pictures": held, "shape": list(first.shape[1:]), "dtype": str(first.dtype)}
    write_text(folder / _KEYS, json.dumps(meta))  # of many pictures: no line for each number
    return FeatureCache(folder)


def _distinct(pictures: Iterable[Picture]) -> dict[str, Read]:
    """Each picture once, by the SHA-256 of its bytes and how finely it may be cut."""
    distinct: dict[str, Read] = {}
    # Many rows show one picture: its bytes are read once, and not at all where the hash is known.
    for image, read, known, most in dict.fromkeys(pictures):
        own = known or hashlib.sha256(read(image)).hexdigest()
        distinct.setdefault(picture_key(own, most), (image, read, most))
    return distinct


def encode_seconds(model: Model, picture: Read, precision: str) -> float:
    """What `auto` reckons one picture to cost: decoding it, and the encoder's operations.

    Source: `torch.utils.flop_counter` (products and convolutions, a multiplication and an addition
    each; on CPUs it does not see attention). tests/unit/train/test_feature_cache.py has the count
    by hand.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _encode(model, [picture], precision)
    kind = "cpu" if model.device.type == "cpu" else "accelerator"
    return _PICTURE_SECONDS + counter.get_total_flops() / _OPERATIONS_A_SECOND[kind, precision]


@torch.no_grad()
def _encode(model: Model, pictures: list[Read], precision: str) -> tuple[np.ndarray, list[Tiles]]:
    """Features [S, N, C] of all tiles, and how each picture is cut."""
    was_training = model.vision_encoder.training
    model.vision_encoder.eval()
    preprocessing = model.vision_encoder.preprocessing
    found = [
        shown(decode(read(i), where=i.path), preprocessing, most=most) for i, read, most in pictures
    ]
    pixels = torch.from_numpy(np.concatenate([one.array for one in found]))
    with autocast(model.device, precision):
        features = model.encode_pixels(pixels.to(model.device))
    model.vision_encoder.train(was_training)
    return _to_numpy(features.cpu()), [one.tiles for one in found]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The autocast that training with this precision uses."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _to_numpy(features: Tensor) -> np.ndarray:
    if features.dtype == torch.bfloat16:
        return features.contiguous().view(torch.uint16).numpy()
    return features.numpy()
