"""Pairs of picture and text, or of picture, question and answer, as batches.

Shapes: n pairs, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from diptych.data.batching.batch import Batch
from diptych.data.batching.collate import Prepared
from diptych.data.batching.picture_loader import Item, PictureLoader, attach
from diptych.data.text.plain_text import TextTokens
from diptych.errors import DiptychError, ModelError, SampleTooLong


@dataclass
class PairCollator:
    """One picture and one text a sample, no packing: one batch a step.

    The text is the assistant's (a caption, an answer). Samples that lack what is needed, or have
    more than one picture, are rejected.

    Args:
        texts: turns texts into ids for the model's own text encoder; None leaves them as text.
        questions: the user's text is read, too, as `encoder_ids`; needs `texts`.
        needs: what a sample must have, and what is read of it.
        draws: of a list of captions take one by the visit, not the first (training).
        long_samples: what happens to a text that is longer than the text encoder reads.
    """

    pictures: PictureLoader
    texts: TextTokens | None = None
    questions: bool = False
    needs: tuple[str, ...] = ("image", "text")
    draws: bool = False
    long_samples: Literal["reject", "truncate"] = "truncate"

    def __call__(self, items: Sequence[Item]) -> Prepared:
        prepared = Prepared()
        shown = items if "image" in self.needs else []
        keys, pictures, errors = self.pictures.load(shown)
        keys = keys or [[] for _ in items]
        image_keys: list[str] = []
        texts: list[str] = []
        rows: list[_Read] = []
        for number, item in enumerate(items):
            try:
                if (error := errors.get(number)) is not None:
                    raise error
                text, read = self._read(item, len(keys[number]))
            except DiptychError as found:
                prepared.rejected.append((item.sample.id, found.to_dict()))
                continue
            if read.num_cut:
                prepared.truncated.append((item.sample.id, read.num_cut))
            rows.append(read)
            image_keys += keys[number]
            texts.append(text)
            prepared.used.append(item.sample.id)
        if not rows:
            return prepared
        ids, mask = self._padded([r.ids for r in rows])
        none, zeros = torch.zeros(0, dtype=torch.int64), torch.zeros_like(ids)
        batch = Batch(
            ids, zeros, mask, zeros, none, none, none, image_keys=tuple(image_keys),
            texts=tuple(texts), sample_ids=tuple(prepared.used),
        )  # fmt: skip
        if self.questions:
            batch.encoder_ids, batch.encoder_mask = self._padded([r.question for r in rows])
        attach(batch, pictures, self.pictures.features is not None)
        prepared.batches.append(batch)
        return prepared

    def _read(self, item: Item, num_pictures: int) -> tuple[str, _Read]:
        """A sample's text and ids.

        Raises:
            ModelError: it is no pair, or a text that cannot be read as plain text.
            SampleTooLong: a text is too long, and not to be truncated.
        """
        text = self._text(item) if "text" in self.needs else ""
        wrong_pictures = "image" in self.needs and num_pictures != 1
        if wrong_pictures or ("text" in self.needs and not text):
            raise ModelError(
                f"one {' and one '.join(self.needs)} are needed, this sample has {num_pictures} "
                f"pictures and a text of {len(item.sample.answer)} characters",
                where=item.sample.source,
            )
        if self.texts is None or not text:
            return text, _Read()
        ids, cut = self.texts.ids(text)
        question, more = self.texts.ids(item.sample.question) if self.questions else ([], 0)
        if (cut or more) and self.long_samples == "reject":
            raise SampleTooLong(
                f"the text is {cut + more} tokens longer than the {self.texts.max_tokens} that are "
                "read",
                where=item.sample.source or item.sample.id,
                fix="set the stage's long_samples=truncate, or shorten it",
            )
        return text, _Read(ids, question, cut + more)

    def _text(self, item: Item) -> str:
        """The answer; of a list of captions one, drawn by the visit."""
        if not self.draws or len(item.sample.texts) < 2:
            return item.sample.answer.strip()
        return random.Random(item.visit).choice(item.sample.texts)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask int64 [n, T]; one column of nothing where no text is read."""
        if self.texts is None or "text" not in self.needs:
            nothing = np.zeros((len(rows), 1), np.int64)
            return torch.from_numpy(nothing), torch.from_numpy(nothing.copy())
        ids, mask = self.texts.pad(rows)
        return torch.from_numpy(ids), torch.from_numpy(mask)


@dataclass(frozen=True, slots=True)
class _Read:
    """Ids of a sample's texts, and how many tokens were cut off."""

    ids: Sequence[int] = ()
    question: Sequence[int] = ()
    num_cut: int = 0
