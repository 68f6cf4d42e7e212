"""A small VQA set that the chart generator did not make: one shape on a plain ground.

`python tests/e2e/shapes.py OUT` writes `train.json`, `test.json` (LLaVA format) and `photos/`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")


def draw(shape: str, colour: str, side: str, rng: random.Random) -> Image.Image:
    """One picture of 64 x 64 pixels."""
    ground = tuple(rng.randint(215, 250) for _ in range(3))
    picture = Image.new("RGB", (64, 64), ground)
    pen = ImageDraw.Draw(picture)
    size = rng.randint(16, 26)
    x = rng.randint(2, 30 - size) if side == "left" else rng.randint(34, 62 - size)
    y = rng.randint(2, 62 - size)
    box = (x, y, x + size, y + size)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=COLOURS[colour])
    return picture


def write(out: Path, num_train: int = 400, num_test: int = 80, seed: int = 0) -> None:
    """Write both splits; every picture has three questions."""
    rng = random.Random(seed)
    photos = out / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("test", num_test)):
        rows = []
        for number in range(count):
            shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
            side = rng.choice(("left", "right"))
            name = f"{split}-{number:04d}.png"
            draw(shape, colour, side, rng).save(photos / name)
            asked = (
                ("shape", "What shape is it?", shape),
                ("colour", f"What colour is the {shape}?", colour),
                ("side", f"On which side is the {colour} {shape}?", side),
            )
            for kind, question, answer in asked:
                rows.append(
                    {
                        "id": f"{split}-{number}-{kind}",
                        "image": name,
                        "conversations": [
                            {"from": "human", "value": f"<image>\n{question}"},
                            {"from": "gpt", "value": answer},
                        ],
                        "kind": kind,
                    }
                )
        (out / f"{split}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
