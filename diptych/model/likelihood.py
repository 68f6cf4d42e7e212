"""How likely a model finds given answers and given text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from diptych import errors
from diptych.data.batching.picture_loader import Item
from diptych.data.pixels.image import no_images
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.data.text.chat import Fate
from diptych.errors import DiptychError, ModelError, SampleTooLong
from diptych.model.precision import in_its_precision
from diptych.model.shared_prefix import Passage, log_probabilities
from diptych.model.speaker import Speaker


@torch.no_grad()
def log_likelihoods(
    model: Speaker,
    samples: Sequence[Sample],
    continuations: Sequence[Sequence[str]],
    *,
    images: Callable[[Image], bytes] | None = None,
    chat: bool = True,
) -> list[list[float]]:
    """Sum of log-probabilities (nats) of each continuation as the answer to its sample.

    With `chat` False the sample's text is the prompt as it stands, no template.

    The end-of-turn mark counts as part of the answer, as in training. Candidates of one
    sample share its picture's tokens, without a picture the whole prompt.

    Raises:
        SampleTooLong: a prompt with a candidate exceeds the context.
        ModelError: a candidate has no token; the sum over none would be the best of all.
    """
    if not chat:
        prompts = ["".join(t.text for t in s.turns) for s in samples]
        places = [s.source or s.id for s in samples]
        return raw_log_likelihoods(model, prompts, continuations, places)
    items = []
    read = images or no_images
    for number, (sample, texts) in enumerate(zip(samples, continuations, strict=True)):
        # Earlier answers are read; only the candidate counts.
        asked = [replace(turn, learn=False) for turn in sample.turns]
        for choice, text in enumerate(texts):
            turns = (*asked, Turn("assistant", (Text(text),)))
            items.append(Item(Sample(f"{number}.{choice}", turns, sample.source), read))
    shown = [next(item.sample.images(), None) is not None for item in items]
    if model.language_model.is_encoder_decoder:
        shown = [True] * len(items)  # its prompts are read by the encoder, each alone
    texts_alone = [item for item, has in zip(items, shown, strict=True) if not has]
    sums = _text_sums(model, [item.sample for item in texts_alone])
    if any(shown):
        sums |= _sample_sums(model, [i for i, has in zip(items, shown, strict=True) if has])
    return [
        [sums[f"{number}.{choice}"] for choice in range(len(texts))]
        for number, texts in enumerate(continuations)
    ]


def _text_sums(model: Speaker, samples: Sequence[Sample]) -> dict[str, float]:
    """By sample id the sum over its last answer; what neighbours share is read once."""
    collator = model.collator()
    passages = []
    for sample in samples:
        encoded = collator.fit(sample)
        targets = [n for n, fate in enumerate(encoded.fates) if fate is Fate.TARGET and n > 0]
        if not targets:
            raise _no_token(sample)
        passages.append(Passage(encoded.ids[: targets[-1] + 1], targets[0]))
    ids = [sample.id for sample in samples]
    return dict(zip(ids, log_probabilities(model, passages), strict=True))


def _no_token(sample: Sample) -> ModelError:
    return ModelError(
        f"the candidate {sample.answer[:40]!r} has no token",
        where=sample.source or None,
        fix="give every choice a text",
    )


@torch.no_grad()
@in_its_precision
def _sample_sums(model: Speaker, items: Sequence[Item]) -> dict[str, float]:
    """By sample id the sum over its last answer; samples about one picture share its tokens."""
    prepared = model.collator()(items)
    if prepared.rejected:
        _, error = prepared.rejected[0]
        kind = getattr(errors, str(error["error"]), DiptychError)
        raise kind(str(error["message"]), where=error["where"], fix=error["fix"])
    by_id = {item.sample.id: item.sample for item in items}
    sums: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in prepared.batches:
            counts = batch.target_samples.bincount(minlength=len(batch.sample_ids))
            for id, count in zip(batch.sample_ids, counts.tolist(), strict=True):
                if not count:
                    raise _no_token(by_id[id])
            batch = batch.to(model.device)
            values = model.target_log_probs(batch)
            # Added up as Python's floats, which are float64: not every device has it.
            total = [0.0] * len(batch.sample_ids)
            for sample, value in zip(batch.target_samples.tolist(), values.tolist(), strict=True):
                total[sample] += value
            sums.update(zip(batch.sample_ids, total, strict=True))
    finally:
        model.train(was_training)
    return sums


def raw_log_likelihoods(
    model: Speaker,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    places: Sequence[str] = (),
) -> list[list[float]]:
    """Log-probability (nats) of each continuation right after its prompt, no chat template.

    A prompt is read once for all its continuations, and what consecutive prompts have in common
    once for all of them (model/shared_prefix.py). Prompt and continuation are tokenised as one
    text; the tokens behind those of the prompt count.

    Args:
        places: where each prompt stands, for errors.

    Raises:
        SampleTooLong: a prompt with its continuation exceeds the context.
        ModelError: a continuation has no token of its own.

    Source: lm-evaluation-harness, multiple-choice scoring (`_encode_pair` of lm_eval/api/model.py).
    Parity: tests/conformance/test_mmlu_style.py.
    """
    passages = [
        passage
        for n, (prompt, texts) in enumerate(zip(prompts, continuations, strict=True))
        for passage in _passages(model, prompt, texts, places[n] if n < len(places) else None)
    ]
    sums = iter(log_probabilities(model, passages))
    return [[next(sums) for _ in texts] for texts in continuations]


def _passages(
    model: Speaker, prompt: str, texts: Sequence[str], where: str | None
) -> list[Passage]:
    if not texts:
        return []
    # Blanks between the two belong to the continuation, as in the harness.
    written = [prompt.rstrip(), *(prompt + text for text in texts)]
    start, *wholes = model.tokenizer(written, add_special_tokens=False)["input_ids"]
    context = model.language_model.context_tokens
    for text, whole in zip(texts, wholes, strict=True):
        if len(whole) <= len(start):
            raise ModelError(
                f"the continuation {text[:40]!r} has no token of its own behind its prompt",
                where=where,
                fix="begin the continuation with a blank or a line break",
            )
        if len(whole) - 1 > context:  # the last token is predicted and not read
            raise SampleTooLong(
                f"prompt and continuation have {len(whole)} tokens, the context {context}",
                where=where,
                fix="give fewer worked examples",
            )
    return [Passage(tuple(whole), max(1, len(start))) for whole in wholes]


def text_log_likelihood(model: Speaker, text: str) -> tuple[float, int]:
    """(sum of log-probabilities in nats, tokens predicted) of plain text.

    Text longer than the context is cut into windows; the first token of each has nothing
    before it and is not counted.
    """
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    size = min(1024, model.language_model.context_tokens)
    windows = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    windows = [w for w in windows if len(w) > 1]
    sums = log_probabilities(model, [Passage(w, 1) for w in windows])
    return sum(sums), sum(len(w) - 1 for w in windows)
