"""Transformers' Blip2ForImageTextRetrieval: queries compared with texts, and matching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.blip2_layout import pairs_of_queries, refuse_other_encoders
from diptych.convert.comparison import ExportReport
from diptych.convert.probes import (
    TEXTS,
    compare_outputs,
    compare_pixels,
    compare_weights,
    matched,
    merge_json,
    pixels_of,
    preprocessing_of,
    read_class,
    read_config,
)
from diptych.model.architectures.query_transformer import QueryTransformer, QueryTransformerConfig
from diptych.model.query_former import QueryFormerConfig
from diptych.model.vision_encoder import VisionEncoderConfig

CLASSES = ("Blip2ForImageTextRetrieval",)

ARCHITECTURE = "query_transformer"
NAME = "hf-blip2-retrieval"
TEMPERATURE = "diptych_temperature"
"""Key of config.json that keeps the temperature, for which the class has no place."""
_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
)


def export(model: QueryTransformer, out: Path) -> ExportReport:
    """Write `model` to the empty folder `out` and compare; see `layout.Layout`."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    encoder = model.vision_encoder
    refuse_other_encoders(model)
    config = Blip2Config(
        vision_config=encoder.hf_config.to_dict(),
        qformer_config=model.query_former.hf_config.to_dict(),
        num_query_tokens=model.query_former.num_queries,
        image_text_hidden_size=model.config.dim,
    )
    kind: Any = Blip2ForImageTextRetrieval
    theirs = kind(config).float().eval()
    with torch.no_grad():
        for mine, its in _pairs(model, theirs):
            its.copy_(mine)
    theirs.save_pretrained(out)
    merge_json(out / "config.json", {TEMPERATURE: model.heads.temperature.item()})
    model.tokenizer.save_pretrained(out)
    merge_json(
        out / "tokenizer_config.json", {"model_max_length": model.query_former.context_tokens}
    )
    merge_json(out / "preprocessor_config.json", model.preprocessing.to_hf("clip"))
    report = compare(model, out)
    report.notes.append("the class has no head that writes; keep the Diptych folder for stage 2")
    return report


def _pairs(model: QueryTransformer, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Every tensor of `theirs` with the one of `model` that it is."""
    former = model.query_former
    found = pairs_of_queries(model, former, theirs)
    found += matched(former.embeddings, theirs.embeddings)
    found += matched(model.heads.image, theirs.vision_projection)
    found += matched(model.heads.text, theirs.text_projection)
    return found + matched(model.heads.matching, theirs.itm_head)


def load(path: Path) -> QueryTransformer:
    """The model of a folder in this layout; see `layout.Layout`.

    The head that writes is new; the temperature is that of the config, where Diptych wrote one.
    """
    theirs = _read(path)
    model = described(path).compose().eval()
    with torch.no_grad():
        for own, its in _pairs(model, theirs):
            own.copy_(its)
    return model


def described(path: Path) -> QueryTransformerConfig:
    """What it is composed of; see `layout.Layout`."""
    from transformers import Blip2ForImageTextRetrieval

    config = read_config(Blip2ForImageTextRetrieval, path, NAME)
    former, vision = config.qformer_config, config.vision_config
    known = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return QueryTransformerConfig(
        vision_encoder=VisionEncoderConfig(
            config={**vision.to_dict(), "model_type": "blip_2_vision_model"},
            layer=-1,
            features="full",
            image=preprocessing_of(path),
        ),
        query_former=QueryFormerConfig(
            config={name: getattr(former, name) for name in _SIZES},
            tokenizer=str(path),
            num_queries=config.num_query_tokens,
            cross_attention_every=former.cross_attention_frequency,
            max_tokens=min(int(former.max_position_embeddings), 64),
            dropout=float(former.hidden_dropout_prob),
            norm_eps=float(vision.layer_norm_eps),
        ),
        dim=config.image_text_hidden_size,
        temperature=float(known.get(TEMPERATURE, 0.07)),
    )


def _read(path: Path) -> Any:
    from transformers import Blip2ForImageTextRetrieval

    return read_class(Blip2ForImageTextRetrieval, path, NAME)


@torch.no_grad()
def outputs(model: QueryTransformer) -> list[Tensor]:
    """Similarities and matching logits of the probes; see `layout.Layout`."""
    return _own(model, *_inputs(model))


def _inputs(model: QueryTransformer) -> tuple[Tensor, Tensor, Tensor]:
    tokens = model.text_tokens
    ids, mask = tokens.pad([tokens.ids(t)[0] for t in TEXTS[1:]])
    return pixels_of(model.preprocessing), torch.from_numpy(ids), torch.from_numpy(mask)


def _own(model: QueryTransformer, pixels: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
    pixels, ids, mask = (x.to(model.device) for x in (pixels, ids, mask))
    former = model.query_former
    states = former.image_states(model.encode_pixels(pixels))
    images = model.project_queries(former.read_image(states))
    texts = model.project_text(former.read_text(ids, mask)[:, 0])
    return [model.compare(images, texts).cpu(), model.match(ids, mask, states).cpu()]


@torch.no_grad()
def compare(model: QueryTransformer, path: Path) -> ExportReport:
    """Hold `model` (float32) against a folder; see `layout.Layout`."""
    theirs = _read(path)
    report = ExportReport(NAME, type(theirs).__name__)
    pixels, ids, mask = _inputs(model)
    if not compare_pixels(report, pixels, path):
        return report
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    reference = [
        theirs(**inputs, use_image_text_matching_head=False).logits_per_image,
        theirs(**inputs, use_image_text_matching_head=True).logits_per_image,
    ]
    compare_outputs(report, _own(model, pixels, ids, mask), reference)
    compare_weights(report, _pairs(model, theirs))
    return report
