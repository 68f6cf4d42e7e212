"""A fake model for the statistics of the runner: it looks answers up, it sees nothing."""

from __future__ import annotations

from diptych.data.sample import Image, Sample, Text, Turn


def question(id, answer, *, image=None, kind=None, text="How many?", **meta) -> Sample:
    parts = ((Image(image, data=b"bytes"),) if image else ()) + (Text(text),)
    return Sample(
        id=str(id),
        turns=(Turn("user", parts), Turn("assistant", (Text(answer),))),
        source=f"data.jsonl:{id}",
        meta={**({"kind": kind} if kind else {}), **meta},
    )


class FakeModel:
    """Answers by sample id: `seeing` with pictures, `blind` without; an exception is raised.

    Refuses prompts that hold the answer, and asks for the bytes of every picture.
    """

    def __init__(self, seeing=None, blind=None, *, likelihoods=None, texts=None):
        self.seeing, self.blind = seeing or {}, blind or {}
        self.likelihoods, self.texts = likelihoods or {}, texts or {}
        self.batches: list[int] = []

    def generate(self, samples, *, max_new_tokens, images):
        self.batches.append(len(samples))
        return [self._answer(sample, images) for sample in samples]

    def _answer(self, sample, images):
        assert all(turn.role != "assistant" for turn in sample.turns)
        pictures = list(sample.images())
        assert all(images(picture) for picture in pictures)
        known = self.seeing if pictures else self.blind
        answer = known[sample.id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def log_likelihoods(self, samples, continuations, *, images, chat=True):
        return [
            [self.likelihoods[sample.id][text.strip()] for text in texts]
            for sample, texts in zip(samples, continuations, strict=True)
        ]

    def text_log_likelihood(self, text):
        return self.texts[text]
