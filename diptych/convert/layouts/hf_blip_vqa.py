"""Transformers' BlipForQuestionAnswering.

Shapes: n questions, T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.blip_layout import Pairs, check_start, parts_of, save_as_blip, written_as
from diptych.convert.comparison import ExportReport
from diptych.convert.probes import (
    TEXTS,
    compare_outputs,
    compare_pixels,
    compare_weights,
    matched,
    pixels_of,
    read_class,
    read_config,
)
from diptych.errors import ConfigError
from diptych.model.architectures.answerer import Answerer, AnswererConfig

CLASSES = ("BlipForQuestionAnswering",)

ARCHITECTURE = "answerer"
NAME = "hf-blip-vqa"
ANSWERS = ("two", "a red umbrella", "no")


def _class() -> Any:
    from transformers import BlipForQuestionAnswering

    return BlipForQuestionAnswering


def export(model: Answerer, out: Path) -> ExportReport:
    """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
    config = model.text.hf_config
    if config.encoder_hidden_size != config.hidden_size:
        raise ConfigError(
            "the class has one width for image features and text, this model has "
            f"{config.encoder_hidden_size} and {config.hidden_size}",
            where="model.text",
            fix="compose with an encoder as wide as the text, or keep the Diptych folder",
        )
    theirs = written_as(_class(), model, config.hidden_size, lambda its: _pairs(model, its))
    save_as_blip(theirs, model, out)
    report = compare(model, out)
    report.notes.append(
        f"Diptych starts a question with {model.tokenizer.convert_ids_to_tokens(_start(model))}, "
        "as LAVIS does; BlipProcessor starts it with the tokenizer's own"
    )
    return report


def _start(model: Answerer) -> int:
    return model.text.grounded_start


def _pairs(model: Answerer, theirs: Any) -> Pairs:
    """Every tensor of `theirs` with the one of `model` that it is."""
    found = matched(model.vision_encoder.module, theirs.vision_model)
    found += matched(model.text.reader, theirs.text_encoder)
    return found + matched(model.text.writer, theirs.text_decoder)


def load(path: Path) -> Answerer:
    """The model of a folder in this layout; see `layout.Layout`."""
    theirs = read_class(_class(), path, NAME)
    model = described(path).compose().eval()
    check_start(model, theirs, path)
    with torch.no_grad():
        for own, its in _pairs(model, theirs):
            own.copy_(its)
    return model


def described(path: Path) -> AnswererConfig:
    """What it is composed of; see `layout.Layout`."""
    return AnswererConfig(**parts_of(read_config(_class(), path, NAME), path))


@torch.no_grad()
def outputs(model: Answerer) -> list[Tensor]:
    """Logits of the probes' answers; see `layout.Layout`."""
    return _own(model, *_inputs(model))


def _inputs(model: Answerer) -> tuple[Tensor, ...]:
    """Pixels, questions and their mask, answers and theirs."""
    tokens = model.text_tokens
    questions = tokens.pad([tokens.ids(t)[0] for t in TEXTS[1:]])
    answers = tokens.pad([tokens.ids(t)[0] for t in ANSWERS])
    arrays = (torch.from_numpy(x) for x in (*questions, *answers))
    return (pixels_of(model.preprocessing), *arrays)


def _own(model: Answerer, *inputs: Tensor) -> list[Tensor]:
    pixels, ids, mask, answers, answer_mask = (x.to(model.device) for x in inputs)
    states = model.text.understand(ids, mask, model.encode_pixels(pixels))
    hidden = model.text.answer(answers, answer_mask, states, mask)
    return [model.text.logits(hidden)[answer_mask.bool()].cpu()]


@torch.no_grad()
def compare(model: Answerer, path: Path) -> ExportReport:
    """Hold `model` (float32) against a folder; see `layout.Layout`."""
    theirs = read_class(_class(), path, NAME)
    report = ExportReport(NAME, type(theirs).__name__)
    inputs = _inputs(model)
    pixels, ids, mask, answers, answer_mask = inputs
    if not compare_pixels(report, pixels, path):
        return report
    started, begun = ids.clone(), answers.clone()
    started[:, 0], begun[:, 0] = _start(model), model.text.decoder_start
    states = theirs.text_encoder(
        input_ids=started,
        attention_mask=mask,
        encoder_hidden_states=theirs.vision_model(pixel_values=pixels)[0],
    )[0]
    logits = theirs.text_decoder(
        input_ids=begun,
        attention_mask=answer_mask,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
    ).logits
    compare_outputs(report, _own(model, *inputs), [logits[answer_mask.bool()]])
    found = theirs.generate(
        input_ids=started, pixel_values=pixels, attention_mask=mask, max_new_tokens=8,
        num_beams=1, do_sample=False,
    )  # fmt: skip
    texts = model.tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)
    states = model.text.understand(ids, mask, model.encode_pixels(pixels))
    own = model.text.written(states, mask, max_new_tokens=8, num_beams=1)
    if [t.strip() for t in texts] != own:
        report.tokens_equal = False
        report.problems.append("written answers differ")
    compare_weights(report, _pairs(model, theirs))
    return report
