"""Transformers' Blip2ForConditionalGeneration: queries in front of a language model.

Both kinds of language model: decoders (OPT and others), and encoder-decoders (T5), whose encoder
reads queries and prompt.

Parity: tests/parity/test_hf_blip2_generation.py.

Shapes: N pictures, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.blip2_layout import pairs_of_queries, refuse_other_encoders
from diptych.convert.chat_parts import IMAGE_MARK, for_parts, read_template
from diptych.convert.comparison import NUM_NEW_TOKENS, ExportReport, padded
from diptych.convert.probes import (
    compare_outputs,
    compare_pixels,
    compare_weights,
    matched,
    merge_json,
    pictures,
    pixels_of,
    plain_config,
    preprocessing_of,
    read_class,
    read_config,
)
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.chat import Encoded
from diptych.errors import ConfigError
from diptych.model import generate as generation
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.connectors.qformer import Config as QFormerConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.vision_encoder import VisionEncoderConfig

CLASSES = ("Blip2ForConditionalGeneration",)
MODEL_TYPES = ("blip-2",)

ARCHITECTURE = "vlm"
NAME = "hf-blip2"
_PROMPTS = ("", "What is shown here?", "Question: how many are there? Short answer:")
_ANSWER = "two cats and a red umbrella"
_NOTES = (
    "this model was trained with a line break between picture and prompt, Blip2Processor writes "
    "the tokenizer's own start there: put the break into the prompt that you give to the class, or "
    "train with model.language_model.picture_joint=begin",
)


def export(model: Vlm, out: Path) -> ExportReport:
    """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    encoder = model.vision_encoder
    connector: Any = model.connector
    refuse_other_encoders(model)
    if model.config.connector.name != "qformer":
        raise ConfigError(
            f"the layout holds a qformer connector, this model has {model.config.connector.name}",
            where="model.connector",
            fix="export with hf-llava",
        )
    norm_eps = encoder.hf_config.layer_norm_eps
    if connector.image_norm.eps != norm_eps:
        raise ConfigError(
            f"the layout's norm of image features has the encoder's epsilon ({norm_eps}), this "
            f"model's has {connector.image_norm.eps}",
            where="model.connector.norm_eps",
            fix="train with the encoder's epsilon",
        )
    tokenizer = copy.deepcopy(model.tokenizer)
    if IMAGE_MARK not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
    tokenizer.padding_side = "left"
    chat = model.chat_encoder
    # The class has no place for it; read again, the model is asked as it was.
    tokenizer.chat_template = for_parts(chat.template or "", chat.joint or "line")
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    text_config = copy.deepcopy(model.language_model.hf_config)
    text_config.vocab_size = max(text_config.vocab_size, image_token + 1)
    config = Blip2Config(
        vision_config=encoder.hf_config.to_dict(),
        qformer_config=connector.hf_config.to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=len(connector.queries),
        image_token_index=image_token,
    )
    kind: Any = Blip2ForConditionalGeneration
    theirs = kind(config).float().eval()
    with torch.no_grad():
        for mine, its in _pairs(model, theirs):
            _rows(its, len(mine)).copy_(mine)
            if its.shape != mine.shape:
                # What nobody chooses: the mean of all logits never is the largest.
                its[len(mine) :] = mine.mean(0)
    theirs.save_pretrained(out)
    tokenizer.save_pretrained(out)
    pixels = {**model.preprocessing.to_hf("clip"), "processor_class": "Blip2Processor"}
    merge_json(out / "preprocessor_config.json", pixels)
    values = {"processor_class": "Blip2Processor", "num_query_tokens": len(connector.queries)}
    merge_json(out / "processor_config.json", values)
    report = compare(model, out)
    if chat.joint != "begin":
        report.notes += _NOTES
    return report


def _rows(tensor: Tensor, number: int) -> Tensor:
    return tensor[:number] if tensor.ndim else tensor


def _pairs(model: Vlm, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Every tensor of `theirs` with the one of `model` that it is, or whose rows it starts with."""
    connector: Any = model.connector
    found = pairs_of_queries(model, connector, theirs)
    found += matched(connector.projection, theirs.language_projection)
    return found + matched(model.language_model.module, theirs.language_model)


def load(path: Path) -> Vlm:
    """The model of a folder in this layout; see `layout.Layout`."""
    from transformers import Blip2ForConditionalGeneration

    theirs = read_class(Blip2ForConditionalGeneration, path, NAME)
    model = described(path).compose()
    with torch.no_grad():
        for own, its in _pairs(model, theirs):
            own.copy_(its)
    return model.eval()


def described(path: Path) -> VlmConfig:
    """What it is composed of; see `layout.Layout`."""
    from transformers import Blip2ForConditionalGeneration

    config = read_config(Blip2ForConditionalGeneration, path, NAME)
    former, vision = config.qformer_config, config.vision_config
    template, joint, _ = read_template(path)
    return VlmConfig(
        vision_encoder=VisionEncoderConfig(
            config={**plain_config(vision), "model_type": "blip_2_vision_model"},
            layer=-1,
            features="full",
            image=preprocessing_of(path),
        ),
        connector=QFormerConfig(
            config=plain_config(former),
            num_queries=config.num_query_tokens,
            norm_eps=float(vision.layer_norm_eps),
        ),
        language_model=LanguageModelConfig(
            config=plain_config(config.text_config),
            tokenizer=str(path),
            template=template or "plain",
            picture_joint=joint or "begin",
        ),
    )


# -- comparing ------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: Vlm) -> list[Tensor]:
    """Logits of the probes; see `layout.Layout`."""
    return _own(model, pixels_of(model.preprocessing), _prompts(model))


def _prompts(model: Vlm) -> list[Encoded]:
    """One conversation for every probe picture."""
    shown = (Image(f"{n}.png", data) for n, data in enumerate(pictures()))
    found = []
    for image, prompt in zip(shown, _PROMPTS, strict=True):
        parts = (image, Text(prompt)) if prompt else (image,)
        sample = Sample(image.path, (Turn("user", parts),))
        found.append(model.chat_encoder.encode(sample, generation=True))
    return found


def _answer(model: Vlm) -> Tensor:
    """What an encoder-decoder model's decoder reads [1, T]."""
    config = model.language_model.hf_config
    start = getattr(config, "decoder_start_token_id", 0) or 0
    words = model.tokenizer.encode(_ANSWER, add_special_tokens=False)
    return torch.tensor([[start, *words]])


def _own(model: Vlm, pixels: Tensor, encoded: list[Encoded]) -> list[Tensor]:
    """Logits [T, V] of every prompt; of an encoder-decoder model those of an answer to it."""
    lm, device = model.language_model, model.device
    ids, mask = (x.to(device) for x in padded([e.ids for e in encoded], "left", IMAGE_TOKEN))
    tokens = model.tile_tokens(model.encode_pixels(pixels.to(device)))  # one tile a picture
    embeds = model.embed(ids, tokens.flatten(0, 1))
    if lm.is_encoder_decoder:
        hidden = lm.body(
            input_ids=_answer(model).to(device).expand(len(ids), -1),
            encoder_hidden_states=lm.encode(embeds, mask),
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return [lm.logits(row).cpu() for row in hidden]
    hidden = lm.body(
        inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=False
    ).last_hidden_state
    return [lm.logits(row[real.bool()]).cpu() for row, real in zip(hidden, mask, strict=True)]


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _theirs(theirs: Any, model: Vlm, pixels: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    rows = model.language_model.embeddings.shape[0]
    if model.language_model.is_encoder_decoder:
        answer = _answer(model).expand(len(ids), -1)
        return list(theirs(**inputs, decoder_input_ids=answer).logits[..., :rows])
    logits = theirs(**inputs, position_ids=_positions(mask)).logits[..., :rows]
    return [row[real.bool()] for row, real in zip(logits, mask, strict=True)]


@torch.no_grad()
def compare(model: Vlm, path: Path) -> ExportReport:
    """Hold `model` (float32) against a folder; see `layout.Layout`."""
    from transformers import Blip2ForConditionalGeneration

    theirs = read_class(Blip2ForConditionalGeneration, path, NAME)
    report = ExportReport(NAME, type(theirs).__name__)
    pixels = pixels_of(model.preprocessing)
    if not compare_pixels(report, pixels, path):
        return report
    encoded = _prompts(model)
    ids, mask = padded([e.ids for e in encoded], "left", theirs.config.image_token_index)
    compare_outputs(
        report, _own(model, pixels, encoded), _theirs(theirs, model, pixels, ids, mask), "logits"
    )
    _compare_tokens(model, theirs, encoded, pixels, ids, mask, report)
    pairs = [(own, _rows(its, len(own))) for own, its in _pairs(model, theirs)]
    compare_weights(report, pairs)
    return report


def _compare_tokens(
    model: Vlm,
    theirs: Any,
    encoded: list[Encoded],
    pixels: Tensor,
    ids: Tensor,
    mask: Tensor,
    report: ExportReport,
) -> None:
    """Greedy tokens of all prompts in one batch, up to the first end."""
    stops = sorted(model.chat_encoder.stop_ids())
    images = model.tile_tokens(model.encode_pixels(pixels.to(model.device)))
    own: list[list[int]] = [[] for _ in encoded]
    for tokens in generation.steps(model, encoded, list(images), NUM_NEW_TOKENS):
        for row, token in zip(own, tokens, strict=True):
            if token is not None:
                row.append(token)
    found = theirs.generate(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, do_sample=False,
        max_new_tokens=NUM_NEW_TOKENS, eos_token_id=stops, pad_token_id=stops[0],
    )  # fmt: skip
    start = 1 if model.language_model.is_encoder_decoder else ids.shape[1]
    for number, mine in enumerate(own):
        its = found[number, start:].tolist()
        end = next((n for n, token in enumerate(its) if token in stops), len(its))
        if its[:end] != mine:
            report.tokens_equal = False
            report.problems.append(f"greedy tokens differ for '{_PROMPTS[number]}'")
