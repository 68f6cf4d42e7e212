"""Finding what is near: a question becomes a vector, an index answers with the nearest rows.

A question is embedded by the model that made the vectors; the fingerprint says whether it is the
same one.
"""

from __future__ import annotations

import logging
from typing import Any

from diptych.data.batching.picture_loader import Item
from diptych.data.pixels.image import given
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.vector_index import Hit, VectorIndex
from diptych.embed.vectors import no_direction
from diptych.errors import ConfigError, DataError, ImageError
from diptych.model.opened import open_model

log = logging.getLogger(__name__)


class Search:
    """An index with the model that its vectors came from.

    Args:
        index: as `open_vectors` gives it.
        model: run or model folder; default: where the vectors say that it was.
        device: as for `open_model`. The precision is that of the vectors.

    Attributes:
        cut_tokens: how many tokens of the last question were cut off, because it was longer than
            the model's text encoder reads.

    Raises:
        ConfigError: the model is not the one that made the vectors.
    """

    def __init__(self, index: VectorIndex, model: str | None = None, device: str | None = None):
        self.index = index
        about = index.about
        source = model or about.model
        if not source:
            raise ConfigError(
                "the vectors do not say which model made them", fix="name it: --model"
            )
        settings = EmbedConfig.from_dict(about.settings)
        made = Embedder(open_model(source, device), settings)
        if made.fingerprint != about.fingerprint:
            raise ConfigError(
                f"this model does not make these vectors (fingerprint {made.fingerprint}, theirs "
                f"is {about.fingerprint})",
                where=source,
                fix="name the model that made them, or embed the data with this one",
            )
        self.made = made
        self.cut_tokens = 0

    def text(self, text: str, k: int = 10, *, exact: bool = False) -> list[Hit]:
        """The rows nearest to a text; of one that is too long, to its beginning (`cut_tokens`)."""
        sample = Sample("question", (Turn("assistant", (Text(text),)),), "the question", {})
        return self._find("text", Item(sample, _no_picture), k, exact)

    def image(self, image: Any, k: int = 10, *, exact: bool = False) -> list[Hit]:
        """The rows nearest to a picture: a path, an address, bytes or a PIL picture.

        Raises:
            ImageError: it cannot be read.
        """
        shown = given(image)
        sample = Sample("question", (Turn("user", (shown,)),), shown.path, {})
        return self._find("image", Item(sample, lambda i: i.data or b""), k, exact)

    def _find(self, what: str, item: Item, k: int, exact: bool) -> list[Hit]:
        settings = self.made.config
        if settings.what != what and settings.space != "shared":
            raise ConfigError(
                f"these vectors ({settings.what}, space {settings.space}) cannot be compared with "
                f"a {what}",
                fix="embed with --space shared, from a model that has such a space",
            )
        embedder = Embedder(self.made.model, replace_what(settings, what))
        prepared = embedder.prepare([item])
        for _, error in prepared.rejected:
            kind = ImageError if what == "image" else DataError
            raise kind(str(error["message"]), where=error.get("where"), fix=error.get("fix"))
        self.cut_tokens = sum(cut for _, cut in prepared.truncated)
        if self.cut_tokens:
            log.warning(
                "the question is longer than the text encoder reads: its last %d tokens count for "
                "nothing", self.cut_tokens,
            )  # fmt: skip
        vectors = embedder.embed(prepared.batches[0])
        if not vectors.directed().all():
            raise no_direction("the question")
        return self.index.search(vectors.numbers(), k, exact=exact)[0]


def replace_what(settings: EmbedConfig, what: str) -> EmbedConfig:
    """The same settings for a question of another kind, in full precision."""
    return EmbedConfig.from_dict({**settings.to_dict(), "what": what, "dtype": "float32"})


def _no_picture(image: Image) -> bytes:
    raise DataError("a text has no picture", where=image.path)
