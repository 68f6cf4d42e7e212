"""From RGB to the encoder's tensor.

`Preprocessing` is what a Hugging Face image processor does, in NumPy and Pillow alone, as a value
that can be compared, hashed and written down. Resizing happens where a picture is decoded, scaling
where the model is: between them a picture is a quarter of its size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image as Pillow
from pydantic import Field, model_validator
from torch import Tensor

from diptych.config import ADDED, Config, inner_error
from diptych.data.pixels.image import MAX_PIXELS, too_large
from diptych.data.pixels.tiling import TilingConfig, TilingField
from diptych.data.pixels.tilings.anyres import Config as Anyres
from diptych.data.pixels.tilings.dynamic import Config as Dynamic
from diptych.data.pixels.tilings.single import Config as Single
from diptych.errors import CheckpointError, ConfigError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_RESAMPLE: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
# Processor classes of transformers, and what each takes for granted: (class, resize, resample,
# crops, mean, std).
_PROCESSORS: dict[str, tuple[str, str, Resample, bool, tuple, tuple]] = {
    "clip": ("CLIPImageProcessor", "shortest_edge", "bicubic", True, _OPENAI_MEAN, _OPENAI_STD),
    "bit": ("BitImageProcessor", "shortest_edge", "bicubic", True, _OPENAI_MEAN, _OPENAI_STD),
    "llava": ("LlavaImageProcessor", "shortest_edge", "bicubic", True, _OPENAI_MEAN, _OPENAI_STD),
    "siglip": ("SiglipImageProcessor", "exact", "bicubic", False, _HALF, _HALF),
    "vit": ("ViTImageProcessor", "exact", "bilinear", False, _HALF, _HALF),
    "llavanext": (
        "LlavaNextImageProcessor", "shortest_edge", "bicubic", True, _OPENAI_MEAN, _OPENAI_STD,
    ),
    "gotocr2": ("GotOcr2ImageProcessor", "exact", "bicubic", False, _OPENAI_MEAN, _OPENAI_STD),
}  # fmt: skip
_NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Beyond this many pixels after resizing, only the part that the crop keeps is computed.
_MAX_RESIZED_PIXELS = 1 << 24


@lru_cache(maxsize=16)
def _levels(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """What each of the 256 levels of a channel becomes, float32 [3, 256].

    Looking up is quicker than computing every pixel, and gives the same numbers.
    """
    scaled = (np.arange(256, dtype=np.uint8) * rescale).astype(np.float32)
    shift = np.asarray(mean, dtype=np.float32)[:, None]
    return (scaled - shift) / np.asarray(std, dtype=np.float32)[:, None]


@lru_cache(maxsize=64)
def _levels_on(device: torch.device, *settings: Any) -> Tensor:
    """The same table, [768], where pictures are; it is sent there once."""
    return torch.from_numpy(_levels(*settings)).flatten().to(device)


class Preprocessing(Config):
    """How a picture becomes the encoder's input: pad, resize, crop, scale, normalise.

    Parity: tests/parity/test_preprocessing.py holds it to the CLIP, SigLIP, ViT, BiT (DINOv2)
    and LLaVA processors of transformers, to 1e-3.
    """

    resize: Literal["shortest_edge", "exact", "none"] = "exact"
    """`shortest_edge` keeps the proportions, `exact` gives `size`, `none` leaves it."""
    size: tuple[int, int] = (224, 224)
    """Height and width in pixels; with `shortest_edge` the first is that edge's length."""
    crop: tuple[int, int] | None = None
    """Height and width cut from the centre (padded with black where the picture is smaller)."""
    pad_to_square: bool = False
    """First pad the shorter side with the mean colour, centred (LLaVA-1.5)."""
    resample: Resample = "bicubic"
    """Pillow's filter for resizing."""
    rescale: float = 1 / 255
    """Factor that brings 0..255 to the range of `mean` and `std`."""
    mean: tuple[float, float, float] = _HALF
    """Subtracted, per channel."""
    std: tuple[float, float, float] = _HALF
    """Divided by, per channel."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Pictures above this are refused, before and after resizing."""

    tiling: TilingField | None = Field(default=None, json_schema_extra=ADDED)
    """How a picture is cut before each tile is treated so; null looks at the whole (`single`)."""

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        side = getattr(self.tiling, "tile", None)
        if side is not None and (self.resize == "none" or self.image_size != (side, side)):
            given = "none" if self.resize == "none" else " x ".join(map(str, self.image_size))
            raise inner_error(
                f"tiles of {side} pixels are read by an encoder of {given}",
                "tiling.tile",
                f"set size (and crop) to [{side}, {side}], or another tile",
            )
        return self

    @property
    def tiles(self) -> TilingConfig:
        """How pictures are cut."""
        return self.tiling or Single()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what `apply` returns, of one tile.

        Raises:
            ConfigError: it depends on the picture.
        """
        if self.crop is not None:
            return self.crop
        if self.resize == "exact" or (self.resize == "shortest_edge" and self.pad_to_square):
            return self.size if self.resize == "exact" else (self.size[0], self.size[0])
        raise ConfigError(
            "the preprocessing gives pictures of different sizes",
            fix="set resize to 'exact', or give a crop",
        )

    def apply(self, image: Pillow.Image) -> np.ndarray:
        """What the encoder reads of an RGB picture: float32 [3, H, W].

        Raises:
            ImageTooLarge: see `pixels`.
        """
        return self.normalised(torch.from_numpy(self.pixels(image)[None]))[0].numpy()

    def pixels(self, image: Pillow.Image) -> np.ndarray:
        """An RGB picture padded, resized and cropped: uint8 [3, H, W], a quarter of the bytes.

        Raises:
            ImageTooLarge: resizing to the shortest edge would give more than `max_pixels`.
        """
        if self.pad_to_square:
            image = self._padded(image)
        if self.resize != "none":
            image = self._resized(image)
        values = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
        if self.crop is not None:
            values = _centre(values, *self.crop)
        return np.array(values, order="C")

    def normalised(self, pixels: Tensor) -> Tensor:
        """Levels uint8 [V, 3, H, W] scaled, shifted and divided: float32, on the same device.

        By a table of the 256 levels, so that every device gives the same numbers.
        """
        table = _levels(self.rescale, self.mean, self.std)
        if pixels.device.type == "cpu":
            levels, out = pixels.numpy(), np.empty(pixels.shape, np.float32)
            # No level lies beyond the table; "clip" saves NumPy a copy.
            for number in range(len(levels)):
                for channel in range(3):
                    own = out[number, channel]
                    np.take(table[channel], levels[number, channel], out=own, mode="clip")
            return torch.from_numpy(out)
        places = pixels.int() + torch.arange(0, 768, 256, device=pixels.device).view(3, 1, 1)
        flat = _levels_on(pixels.device, self.rescale, self.mean, self.std)
        return flat.index_select(0, places.flatten()).view(pixels.shape)

    def _padded(self, image: Pillow.Image) -> Pillow.Image:
        width, height = image.size
        if width == height:
            return image
        side = max(width, height)
        colour = tuple(int(m * 255) for m in self.mean)
        square = Pillow.new("RGB", (side, side), colour)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def _resized(self, image: Pillow.Image) -> Pillow.Image:
        width, height = image.size
        new_height, new_width = self.size
        if self.resize == "shortest_edge":
            edge = self.size[0]
            long = int(edge * max(width, height) / min(width, height))
            new_width, new_height = (edge, long) if width <= height else (long, edge)
        filter = Pillow.Resampling(_RESAMPLE.index(self.resample))
        box = (0.0, 0.0, float(width), float(height))
        if new_width * new_height > _MAX_RESIZED_PIXELS and self.crop is not None:
            # A picture of 1 x 4000 would grow to gigabytes of which the crop keeps a sliver.
            keep_height, keep_width = min(self.crop[0], new_height), min(self.crop[1], new_width)
            left, top = (new_width - keep_width) // 2, (new_height - keep_height) // 2
            across, down = width / new_width, height / new_height
            box = (
                left * across,
                top * down,
                (left + keep_width) * across,
                (top + keep_height) * down,
            )
            new_width, new_height = keep_width, keep_height
        if new_width * new_height > self.max_pixels:
            raise too_large(
                f"after resizing {new_width} x {new_height} =",
                f"{width} x {height}",
                self.max_pixels,
                new_width * new_height,
            )
        return image.resize((new_width, new_height), resample=filter, box=box)

    @classmethod
    def of_folder(cls, folder: Path) -> Preprocessing | None:
        """What a model's folder says, in `preprocessor_config.json` or, as newer processors are
        saved, in `processor_config.json`; None where neither speaks of pictures.

        Raises:
            CheckpointError: a file is no JSON.
            ConfigError: see `from_hf`.
        """
        for name in ("preprocessor_config.json", "processor_config.json"):
            file = folder / name
            if not file.is_file():
                continue
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:  # no JSON, or no UTF-8
                raise CheckpointError(f"the file is no JSON: {error}", where=str(file)) from None
            values = values.get("image_processor", values) if isinstance(values, dict) else {}
            if "image_mean" in values or "image_processor_type" in values:
                return cls.from_hf(values)
        return None

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> Preprocessing:
        """Read a `preprocessor_config.json`.

        Raises:
            ConfigError: the processor does something that cannot be done here; names the key.
        """
        kind = _kind(values)
        _, resize, resample, crops, mean, std = _PROCESSORS[kind]
        size, crop = values.get("size"), values.get("crop_size")
        do_resize = values.get("do_resize", True)
        do_crop = values.get("do_center_crop", crops)
        if isinstance(size, dict):
            if set(size) == {"shortest_edge"}:
                resize, size = "shortest_edge", size["shortest_edge"]
            elif set(size) == {"height", "width"}:
                resize, size = "exact", (size["height"], size["width"])
            else:
                raise _cannot("size", size)
        elif isinstance(size, list | tuple):
            resize, size = "exact", tuple(size)
        size = 224 if size is None else size
        crop = 224 if crop is None and do_crop else crop
        if isinstance(crop, dict):
            if set(crop) != {"height", "width"}:
                raise _cannot("crop_size", crop)
            crop = (crop["height"], crop["width"])
        index = values.get("resample")
        if index is not None and not (isinstance(index, int) and 0 <= index < len(_RESAMPLE)):
            raise _cannot("resample", index)
        normalise = values.get("do_normalize", True)
        rescale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
        return cls.from_dict(
            {
                "tiling": _tiling(kind, values, [size, size] if isinstance(size, int) else size),
                "resize": resize if do_resize else "none",
                "size": [size, size] if isinstance(size, int) else list(size),
                "crop": ([crop, crop] if isinstance(crop, int) else list(crop))
                if do_crop and crop is not None
                else None,
                "pad_to_square": bool(values.get("do_pad", False)) and kind == "llava",
                "resample": resample if index is None else _RESAMPLE[index],
                "rescale": rescale,
                "mean": _three(values.get("image_mean") or mean) if normalise else [0.0] * 3,
                "std": _three(values.get("image_std") or std) if normalise else [1.0] * 3,
            },
            where="preprocessor_config.json",
        )

    def to_hf(self, kind: str = "clip") -> dict[str, Any]:
        """The `preprocessor_config.json` of a processor class that does the same.

        Args:
            kind: clip, siglip, vit, bit or llava.

        Raises:
            ConfigError: that class cannot do it.
        """
        if kind not in _PROCESSORS:
            raise ConfigError(
                f"there is no image processor '{kind}'", fix=f"known: {', '.join(_PROCESSORS)}"
            )
        if self.pad_to_square and kind != "llava":
            kind = "llava"  # the only class that pads with the mean colour
        edge = self.resize == "shortest_edge"
        height, width = self.size
        crop_height, crop_width = self.crop or self.size
        config: dict[str, Any] = {
            "image_processor_type": _PROCESSORS[kind][0],
            "do_convert_rgb": True,
            "do_resize": self.resize != "none",
            "size": {"shortest_edge": height} if edge else {"height": height, "width": width},
            "resample": _RESAMPLE.index(self.resample),
            "do_center_crop": self.crop is not None,
            "crop_size": {"height": crop_height, "width": crop_width},
            "do_rescale": self.rescale != 1.0,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if kind == "llava":
            config["do_pad"] = self.pad_to_square
        return config | _written(self.tiles)


def _written(tiling: TilingConfig) -> dict[str, Any]:
    """Keys of a processor's config by which it cuts pictures like this tiling.

    Raises:
        ConfigError: none does.
    """
    if isinstance(tiling, Single):
        return {}
    if tiling.tiles_per_sample is not None:
        raise ConfigError(
            "no image processor of transformers shares tiles among the pictures of a conversation",
            where="model.vision_encoder.image.tiling.tiles_per_sample",
            fix="set it to null, where conversations have one picture each; or keep the Diptych "
            "folder",
        )
    if isinstance(tiling, Dynamic) and tiling.thumbnail:
        return {
            "image_processor_type": _PROCESSORS["gotocr2"][0],
            "crop_to_patches": True,
            "min_patches": tiling.min_tiles,
            "max_patches": tiling.max_tiles,
        }
    if isinstance(tiling, Anyres) and tiling.rounded and tiling.max_map_tiles is None:
        grids = [[tiling.tile * rows, tiling.tile * columns] for rows, columns in tiling.grids]
        return {
            "image_processor_type": _PROCESSORS["llavanext"][0],
            "do_pad": True,
            "image_grid_pinpoints": grids,
        }
    raise ConfigError(
        f"no image processor of transformers cuts pictures by '{tiling.name}' with these settings",
        where="model.vision_encoder.image.tiling",
        fix="keep the Diptych folder",
    )


def _tiling(kind: str, values: dict[str, Any], size: Sequence[int]) -> dict[str, Any] | None:
    """How a processor cuts pictures, as the tiling's config.

    InternVL's own processor always cuts, whatever its image processor's `crop_to_patches` says.
    """
    side = size[0]
    if kind == "gotocr2":
        most, fewest = values.get("max_patches", 12), values.get("min_patches", 1)
        return {"name": "dynamic", "tile": side, "min_tiles": fewest, "max_tiles": most}
    if kind == "llavanext":
        pinpoints = values.get("image_grid_pinpoints") or _NEXT_PINPOINTS
        if any(length % side for pinpoint in pinpoints for length in pinpoint):
            raise _cannot("image_grid_pinpoints", pinpoints, f"no multiples of {side}")
        grids = [[height // side, width // side] for height, width in pinpoints]
        return {"name": "anyres", "tile": side, "grids": grids}
    return None


def _kind(values: dict[str, Any]) -> str:
    name = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
    plain = name.lower().removesuffix("fast").removesuffix("pil")
    plain = plain.removesuffix("imageprocessor").removesuffix("featureextractor")
    if plain in _PROCESSORS:
        return plain
    if plain == "deit":
        return "clip" if "shortest_edge" in str(values.get("size")) else "vit"
    # An unknown class is read by its keys alone, so all that matter must be there.
    needed = ("size", "image_mean", "image_std", "resample")
    missing = [key for key in needed if key not in values]
    active = [k for k, v in values.items() if k.startswith("do_") and v is True]
    strange = set(active) - {
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",
    }
    if missing or strange:
        raise _cannot("image_processor_type", name, ", ".join([*missing, *sorted(strange)]))
    return "siglip" if not values.get("do_center_crop") else "clip"


def _cannot(key: str, value: Any, about: str = "") -> ConfigError:
    more = f" ({about})" if about else ""
    return ConfigError(
        f"this image processor cannot be followed: {key} = {value!r}{more}",
        where=f"preprocessor_config.json: {key}",
        fix="give the preprocessing yourself: size, resize, crop, mean, std",
    )


def _three(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, int | float) else [float(v) for v in value]


def _centre(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre of [3, H, W]; where the picture is smaller, black is added around it."""
    _, old_height, old_width = values.shape
    if old_height < height or old_width < width:
        canvas = np.zeros((3, max(height, old_height), max(width, old_width)), values.dtype)
        # The odd row goes above and to the left, as transformers' centre crop has it.
        top = -((old_height - canvas.shape[1]) // 2)
        left = -((old_width - canvas.shape[2]) // 2)
        canvas[:, top : top + old_height, left : left + old_width] = values
        values = canvas
        # Shifted by the padding, the crop window starts here.
        top = (old_height - height) // 2 + top
        left = (old_width - width) // 2 + left
    else:
        top, left = (old_height - height) // 2, (old_width - width) // 2
    return values[:, max(0, top) : top + height, max(0, left) : left + width]
