"""Pictures a little different at every visit, so that few of them teach for longer.

What is drawn depends on the number of the visit alone: a resumed run and any number of workers see
the same crops.
"""

from __future__ import annotations

import math
import random

from PIL import Image as Pillow
from pydantic import Field

from diptych.config import Config


class Augment(Config):
    """How training pictures are varied; held-out pictures never are."""

    min_area: float = Field(default=1.0, gt=0, le=1)
    """Least share of a picture's area that a random crop keeps (CLIP: 0.9); 1 crops nothing."""
    max_ratio: float = Field(default=4 / 3, ge=1)
    """How far width to height of a crop may be from the picture's own."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures that are mirrored; words and arrows do not survive that."""

    def apply(self, picture: Pillow.Image, visit: int) -> Pillow.Image:
        """The picture as it is seen at that visit."""
        rng = random.Random(visit * 2_654_435_761 + 97)
        if self.min_area < 1:
            picture = picture.crop(self._box(picture.size, rng))
        if rng.random() < self.flip:
            picture = picture.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
        return picture

    def _box(self, size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
        """A crop as in Inception (random area, random ratio); the whole when none fits."""
        width, height = size
        spread = math.log(self.max_ratio)
        for _ in range(10):
            area = rng.uniform(self.min_area, 1.0)
            ratio = math.exp(rng.uniform(-spread, spread))
            w = round(width * math.sqrt(area * ratio))
            h = round(height * math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.randint(0, width - w), rng.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height
