"""How likely a model finds given answers and given text.

Shapes: P targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from diptych.data.chat import Encoded, Fate
from diptych.data.collate import Item, Pictures, TokenCollator
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import DiptychError, ModelError

if TYPE_CHECKING:
    from diptych.model.architectures.vlm import Vlm


def token_collator(model: Vlm, **settings: object) -> TokenCollator:
    """The collator that fits a model; `settings` override its budgets."""
    lm = model.language_model
    start = getattr(lm.hf_config, "decoder_start_token_id", 0) or 0
    values: dict = {
        "encoder": model.chat_encoder,
        "pictures": Pictures(model.vision_encoder.preprocessing),
        "context_tokens": lm.context_tokens,
        "tokens_per_row": None,
        "text_dim": lm.dim,
        "images_per_row": 16,
        "rows_per_batch": 8,
        "seq2seq": lm.is_encoder_decoder,
        "decoder_start": start,
    }
    return TokenCollator(**{**values, **settings})


def no_images(image: Image) -> bytes:
    """Stands in where no way to the pictures was given."""
    raise ModelError(
        f"the picture {image.path} is needed and no reader was given",
        fix="pass images=, a function from Image to bytes",
    )


@torch.no_grad()
def log_likelihoods(
    model: Vlm,
    samples: Sequence[Sample],
    continuations: Sequence[Sequence[str]],
    *,
    images: Callable[[Image], bytes] | None = None,
    chat: bool = True,
) -> list[list[float]]:
    """Sum of log-probabilities (nats) of each continuation as the answer to its sample.

    With `chat` False the sample's text is the prompt as it stands, no template.

    The end-of-turn mark counts as part of the answer, as in training. Candidates of one
    sample share its picture's tokens.
    """
    if not chat:
        prompts = ["".join(t.text for t in s.turns) for s in samples]
        return [
            raw_log_likelihoods(model, p, c) for p, c in zip(prompts, continuations, strict=True)
        ]
    items = []
    read = images or no_images
    for number, (sample, texts) in enumerate(zip(samples, continuations, strict=True)):
        for choice, text in enumerate(texts):
            turns = (*sample.turns, Turn("assistant", (Text(text),)))
            items.append(Item(Sample(f"{number}.{choice}", turns, sample.source), read))
    sums = _sample_sums(model, items)
    result: list[list[float]] = [[0.0] * len(texts) for texts in continuations]
    for key, value in sums.items():
        number, choice = map(int, key.split("."))
        result[number][choice] = value
    return result


@torch.no_grad()
def _sample_sums(model: Vlm, items: Sequence[Item]) -> dict[str, float]:
    was_training = model.training
    model.eval()
    prepared = token_collator(model)(items)
    if prepared.rejected:
        _, error = prepared.rejected[0]
        raise DiptychError(str(error["message"]), where=error["where"], fix=error["fix"])
    sums: dict[str, float] = {}
    for batch in prepared.batches:
        batch = batch.to(model.device)
        values = model.target_log_probs(batch)
        total = torch.zeros(len(batch.sample_ids), dtype=torch.float64)
        total.index_add_(0, batch.target_samples.cpu(), values.double().cpu())
        sums.update(zip(batch.sample_ids, total.tolist(), strict=True))
    model.train(was_training)
    return sums


def raw_log_likelihoods(model: Vlm, prompt: str, continuations: Sequence[str]) -> list[float]:
    """Log-probability (nats) of each continuation right after `prompt`, no chat template.

    Source: lm-evaluation-harness, multiple-choice scoring.
    Parity: tests/conformance/test_mmlu_style.py.
    """
    tokenizer = model.tokenizer
    start = tokenizer.encode(prompt, add_special_tokens=False)
    encoded = []
    for text in continuations:
        whole = start + tokenizer.encode(text, add_special_tokens=False)
        fates = [Fate.PROMPT] * len(start) + [Fate.TARGET] * (len(whole) - len(start))
        encoded.append(Encoded(tuple(whole), tuple(fates), ()))
    return _encoded_sums(model, encoded)


def text_log_likelihood(model: Vlm, text: str) -> tuple[float, int]:
    """(sum of log-probabilities in nats, tokens predicted) of plain text.

    Text longer than the context is cut into windows; the first token of each has nothing
    before it and is not counted.
    """
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    size = min(1024, model.language_model.context_tokens)
    windows = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    windows = [w for w in windows if len(w) > 1]
    encoded = [Encoded(w, (Fate.PROMPT, *[Fate.TARGET] * (len(w) - 1)), ()) for w in windows]
    return sum(_encoded_sums(model, encoded)), sum(len(w) - 1 for w in windows)


@torch.no_grad()
def _encoded_sums(model: Vlm, encoded: Sequence[Encoded]) -> list[float]:
    was_training = model.training
    model.eval()
    collator = token_collator(model, packed=False)
    sums = []
    for one in encoded:
        batch = collator.batch_of([one]).to(model.device)
        sums.append(float(model.target_log_probs(batch).double().sum()))
    model.train(was_training)
    return sums
