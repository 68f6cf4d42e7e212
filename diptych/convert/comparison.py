"""Two implementations of one model, held against each other.

The same conversations go through Diptych and through the ecosystem's own tokenizer, image
processor and model: alone, in a batch padded on the right, in a batch padded on the left.
Everything runs in float32, so what is compared is the model and not the rounding.

Shapes: T tokens, V vocabulary, R rows, N pictures.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diptych.data.batching.picture_loader import shown
from diptych.data.pixels.image import decode
from diptych.data.pixels.tiling import Tiles
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.chat import Encoded
from diptych.errors import ModelError
from diptych.model import generate as generation
from diptych.model.architectures.vlm import Vlm

RELATIVE_TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit."""
PIXEL_TOLERANCE = 1e-3
NUM_NEW_TOKENS = 12
_SETTLED = ("one picture", "two pictures")


@dataclass
class ExportReport:
    """What the comparison found.

    Attributes:
        layout: name of the layout.
        class_name: class of the ecosystem that was compared with.
        num_cases: runs compared (conversations, alone and in each padding).
        max_logit_difference: largest absolute difference of a logit, and `where` it was.
        tolerance: what it may be: `RELATIVE_TOLERANCE` of the largest logit.
        tokens_equal: greedy tokens agree, alone and batched.
        max_pixel_difference: largest difference of a preprocessed pixel.
        rounding_difference: what storing in less than float32 changed in a logit.
        notes: what a user of the result should know.
        problems: what must not be; empty when the gate opens.
    """

    layout: str
    class_name: str
    num_cases: int = 0
    max_logit_difference: float = 0.0
    where: str = ""
    tolerance: float = 0.0
    tokens_equal: bool = True
    max_pixel_difference: float = 0.0
    rounding_difference: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """Pictures as both sides look at them.

    Attributes:
        pixels: of all tiles, float32 [S, 3, H, W].
        tiles: how each picture is cut.
    """

    pixels: Tensor
    tiles: tuple[Tiles, ...]


class Reference(Protocol):
    """A model as the ecosystem's own classes read it."""

    class_name: str
    image_token: int
    """Id that stands for an image position."""
    stop_ids: frozenset[int]
    """Ids at which its own generation settings stop."""
    chat_settled: bool
    """Its chat template was written for this model, so it must give the model's own ids."""

    def pixels(self, pictures: Sequence[Any]) -> Tensor:
        """PIL pictures -> float32 [S, 3, H, W], their tiles by its own image processor."""
        ...

    def chat_ids(self, messages: list[dict[str, Any]]) -> list[int] | None:
        """Ids of a conversation that awaits an answer; None where it has no template."""
        ...

    def logits(self, ids: Tensor, mask: Tensor, seen: Seen | None) -> Tensor:
        """ids and mask int64 [R, T] -> logits [R, T, V]."""
        ...

    def greedy(self, ids: Tensor, mask: Tensor, seen: Seen | None, count: int) -> list:
        """At most `count` new tokens of each row (a list of lists of ids)."""
        ...


@dataclass(frozen=True)
class Probe:
    """A conversation that both sides read; `settled` ones must tokenise alike on both."""

    name: str
    sample: Sample
    encoded: Encoded
    settled: bool


def probes(model: Vlm) -> list[Probe]:
    """Conversations with one picture, none, several of different sizes, and a second turn.

    Those that do not fit the context are left out.

    Raises:
        ModelError: not even one picture fits.
    """
    wide, tall, square = (_picture(*s) for s in ((97, 40), (31, 64), (48, 48)))
    ask, answer = "What is shown here?", Turn("assistant", (Text("A small picture."),))
    turns = {
        "one picture": (Turn("user", (wide, Text(ask))),),
        "two pictures": (Turn("user", (tall, square, Text("What differs?"))),),
        "no picture": (Turn("user", (Text("Name three colours."),)),),
        "second turn": (
            Turn("user", (square, Text(ask))),
            answer,
            Turn("user", (Text("Which colours does it have?"),)),
        ),
    }
    room = model.language_model.context_tokens - NUM_NEW_TOKENS
    found = []
    for name, conversation in turns.items():
        sample = Sample(name, conversation)
        encoded = model.chat_encoder.encode(sample, generation=True)
        if len(encoded) <= room:
            found.append(Probe(name, sample, encoded, name in _SETTLED))
    if not any(p.encoded.images for p in found):
        raise ModelError(
            f"one picture ({model.tokens_per_image} tokens) and a question do not fit the "
            f"language model's context of {model.language_model.context_tokens} tokens"
        )
    return found


def _picture(width: int, height: int) -> Image:
    from PIL import Image as Pillow

    noise = np.random.default_rng(width * height).integers(0, 96, (height, width, 3))
    slope = np.linspace(0, 159, width)[None, :, None]
    buffer = io.BytesIO()
    Pillow.fromarray((noise + slope).astype(np.uint8)).save(buffer, format="PNG")
    return Image(f"{width} x {height}.png", buffer.getvalue())


@torch.no_grad()
def logits_of_probes(model: Vlm, cases: Sequence[Probe]) -> list[Tensor]:
    """Logits [T, V] of each conversation, computed alone by Diptych."""
    found = []
    for case in cases:
        ids = torch.tensor([case.encoded.ids], device=model.device)
        pictures = generation.encode_images(model, [case.encoded], _bytes)
        embeds = model.embed(ids, torch.cat(pictures) if pictures else None)
        hidden = model.language_model.body(inputs_embeds=embeds, use_cache=False)
        found.append(model.language_model.logits(hidden.last_hidden_state[0]).cpu())
    return found


def compare(model: Vlm, reference: Reference, layout: str) -> ExportReport:
    """Everything both sides compute, in one report; problems are collected, not raised."""
    report = ExportReport(layout, reference.class_name)
    cases = probes(model)
    own = logits_of_probes(model, cases)
    report.tolerance = RELATIVE_TOLERANCE * max(float(o.abs().max()) for o in own)
    seen = [_compare_pixels(model, reference, case, report) for case in cases]
    for case in cases:
        _compare_chat(reference, case, report)
    runs = [(case.name, [i], "right") for i, case in enumerate(cases)]
    runs += [(f"batch padded on the {s}", list(range(len(cases))), s) for s in ("right", "left")]
    for name, members, side in runs:
        ids, mask = padded([cases[i].encoded.ids for i in members], side, reference.image_token)
        ids, mask = ids.to(model.device), mask.to(model.device)
        together = _together([s for i in members if (s := seen[i]) is not None])
        try:
            theirs = reference.logits(ids, mask, together).float().cpu()
        except Exception as error:  # whatever its class raises, it cannot run what we can
            report.problems.append(f"{reference.class_name} fails on '{name}': {error}")
            continue
        for row, i in enumerate(members):
            real = theirs[row, mask[row].bool().cpu(), : own[i].shape[1]]
            _note_difference(report, f"{name}: {cases[i].name}", own[i], real)
        if side == "left" or len(members) == 1:
            _compare_tokens(
                model, reference, [cases[i] for i in members], ids, mask, together, report
            )
        report.num_cases += 1
    if not report.max_logit_difference <= report.tolerance:  # NaN fails too
        report.problems.append(
            f"logits differ by {report.max_logit_difference:.3g} (at {report.where}), allowed "
            f"are {report.tolerance:.3g}"
        )
    return report


def _note_difference(report: ExportReport, name: str, own: Tensor, theirs: Tensor) -> None:
    gaps = (own - theirs).abs().amax(-1)
    largest = float(gaps.max())
    if math.isnan(report.max_logit_difference):
        return
    if not largest <= report.max_logit_difference or not report.where:
        report.max_logit_difference = largest
        report.where = f"{name}, token {int(gaps.argmax())} of {len(gaps)}"


def _together(seen: Sequence[Seen]) -> Seen | None:
    if not seen:
        return None
    return Seen(torch.cat([s.pixels for s in seen]), tuple(t for s in seen for t in s.tiles))


def _compare_pixels(
    model: Vlm, reference: Reference, case: Probe, report: ExportReport
) -> Seen | None:
    """The reference's own pixels, which everything after is computed from."""
    if not case.encoded.images:
        return None
    pictures = [decode(_bytes(image)) for image in case.encoded.images]
    cut = [shown(p, model.preprocessing, scaled=True) for p in pictures]
    own, tiles = np.concatenate([one.array for one in cut]), tuple(one.tiles for one in cut)
    theirs = reference.pixels(pictures)
    if tuple(theirs.shape) != own.shape:
        report.problems.append(f"pixels have the shape {tuple(theirs.shape)}, not {own.shape}")
        return Seen(torch.from_numpy(own), tiles)
    gap = float(np.abs(theirs.numpy() - own).max())
    report.max_pixel_difference = max(report.max_pixel_difference, gap)
    if gap > PIXEL_TOLERANCE:
        report.problems.append(f"preprocessed pixels differ by {gap:.3g} ({case.name})")
    return Seen(theirs, tiles)


def _compare_chat(reference: Reference, case: Probe, report: ExportReport) -> None:
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": decode(_bytes(part))}
                if isinstance(part, Image)
                else {"type": "text", "text": part.text}
                for part in turn.parts
                if isinstance(part, Image | Text)
            ],
        }
        for turn in case.sample.turns
    ]
    own = [reference.image_token if i == IMAGE_TOKEN else i for i in case.encoded.ids]
    try:
        theirs = reference.chat_ids(messages)
    except ModelError as error:
        note = f"{error.what} ('{case.name}')"
    else:
        if theirs == own:
            return
        if theirs is None:
            note = f"{reference.class_name} has no chat template to compare with"
        else:
            same = [a == b for a, b in zip(own, theirs, strict=False)]
            first = same.index(False) if False in same else len(same)
            note = (
                f"the chat template gives other token ids for '{case.name}' "
                f"({len(theirs)} against {len(own)}, first at {first})"
            )
    if case.settled and reference.chat_settled:
        report.problems.append(note)
        return
    if note not in report.notes:
        report.notes.append(note)


def _compare_tokens(
    model: Vlm,
    reference: Reference,
    cases: Sequence[Probe],
    ids: Tensor,
    mask: Tensor,
    seen: Seen | None,
    report: ExportReport,
) -> None:
    encoded = [case.encoded for case in cases]
    pictures = generation.encode_images(model, encoded, _bytes)
    own: list[list[int]] = [[] for _ in cases]
    for tokens in generation.steps(model, encoded, pictures, NUM_NEW_TOKENS):
        for row, token in zip(own, tokens, strict=True):
            if token is not None:
                row.append(token)
    theirs = reference.greedy(ids, mask, seen, NUM_NEW_TOKENS)
    # An imported folder may stop at other marks; up to the first mark both must agree.
    stops = reference.stop_ids | model.chat_encoder.stop_ids()
    for case, a, b in zip(cases, own, theirs, strict=True):
        if _until(a, stops) != _until(b, stops):
            report.tokens_equal = False
            report.problems.append(f"greedy tokens differ for '{case.name}' ({len(cases)} rows)")


def _until(tokens: Sequence[int], stops: frozenset[int]) -> list[int]:
    end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def padded(rows: Sequence[Sequence[int]], side: str, image: int) -> tuple[Tensor, Tensor]:
    """Ids and mask int64 [R, T], padded on that side; `image` stands at image positions."""
    longest = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        values = [image if i == IMAGE_TOKEN else i for i in row]
        ids[number, start : start + len(row)] = torch.tensor(values)
        mask[number, start : start + len(row)] = 1
    return ids, mask


def _bytes(image: Image) -> bytes:
    return image.data or b""
