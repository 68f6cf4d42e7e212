"""Markers: how a text says where its pictures belong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from diptych.data.sample import Image, Text, Turn
from diptych.errors import FormatError, MarkerMismatch

IMAGE_MARKER = "<image>"
MARKERS = (
    IMAGE_MARKER,
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<img><IMG_CONTEXT></img>",
    "<|image|>",
    "<|image_pad|>",
    "<IMG_CONTEXT>",
    "<image_placeholder>",
    "<ImageHere>",
    "[IMG]",
)
"""How tools mark the place of a picture in a text; the first is LLaVA's and our own."""


def split(
    text: str, images: Iterator[Image], marker: str = IMAGE_MARKER
) -> tuple[Text | Image, ...]:
    """Text with `<image>` markers as parts; every marker takes the next picture."""
    parts_: list[Text | Image] = []
    for number, piece in enumerate(text.split(marker)):
        if number:
            parts_.append(next(images))
        if piece:
            parts_.append(Text(piece))
    return tuple(parts_)


def join(turn: Turn, marker: str = IMAGE_MARKER) -> str:
    """The opposite of `split`.

    Raises:
        FormatError: text that itself contains a marker cannot be told apart.
    """
    pieces = []
    for part in turn.parts:
        if isinstance(part, Text):
            if marker in part.text:
                raise FormatError(
                    f"the text itself contains '{marker}', which this format would take "
                    "for a picture"
                )
            pieces.append(part.text)
        else:
            pieces.append(marker)
    return "".join(pieces)


def check(texts: Sequence[str], num_images: int) -> None:
    """Make sure that there is one marker for each picture.

    Raises:
        MarkerMismatch: with both numbers.
    """
    num_markers = sum(text.count(IMAGE_MARKER) for text in texts)
    if num_markers != num_images:
        raise MarkerMismatch(
            f"the conversation has {num_markers} {IMAGE_MARKER} markers, the row has "
            f"{num_images} images"
        )


NUMBERED = re.compile(r"<\|image_(\d+)\|>")
"""Phi's markers, which say by their number which of a row's pictures stands there."""
