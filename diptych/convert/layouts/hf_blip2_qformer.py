"""Transformers' Blip2QFormerModel: the layers of a querying transformer, nothing else.

The class holds neither queries nor the norm of image features; they lie beside it in
`queries.safetensors`. A folder comes in as a part: as `weights` of a query former or of a qformer
connector (tests/parity/test_hf_blip2_qformer.py).

Shapes: N pictures, I image tokens, C their width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.convert.comparison import ExportReport
from diptych.convert.probes import compare_outputs, compare_weights, matched, read_class
from diptych.errors import ConfigError
from diptych.model.architectures.query_transformer import QueryTransformer
from diptych.model.query_former import QUERIES, read_qformer

MODEL_TYPES = ("blip_2_qformer",)

ARCHITECTURE = "query_transformer"
NAME = "hf-blip2-qformer"
_WORDS = (3, 5, 4)
"""Ids that the probe's text reads."""


def export(model: QueryTransformer, out: Path) -> ExportReport:
    """Write the layers of `model` to the empty folder `out` and compare; see `layout.Layout`."""
    former = model.query_former
    former.module.save_pretrained(out)
    rest = {"queries": former.queries}
    rest |= {f"image_norm.{n}": t for n, t in former.image_norm.named_parameters()}
    save_file({n: t.detach().cpu().contiguous() for n, t in rest.items()}, out / QUERIES)
    return compare(model, out)


def described(path: Path) -> NoReturn:
    """A folder in this layout is a part of a model, not a model."""
    load(path)


def load(path: Path) -> NoReturn:
    """A folder in this layout is a part of a model, not a model."""
    raise ConfigError(
        "these are layers without an encoder, a tokenizer or heads",
        where=str(path),
        fix="name the folder as model.connector.weights (stage 2) or model.query_former.weights "
        "(stage 1) of a recipe",
    )


@torch.no_grad()
def outputs(model: QueryTransformer) -> list[Tensor]:
    """What queries and a text become; see `layout.Layout`."""
    former = model.query_former
    states = _image_states(former)
    text = former.embeddings(input_ids=torch.tensor([_WORDS], device=states.device))
    return [
        former.read_image(states).cpu(),
        former.module(query_embeds=text, query_length=0).last_hidden_state.cpu(),
    ]


def _image_states(former: Any) -> Tensor:
    """Noise in the place of image features [N, I, C]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 7, former.hf_config.encoder_hidden_size, generator=generator)
    return noise.to(former.queries.device)


@torch.no_grad()
def compare(model: QueryTransformer, path: Path) -> ExportReport:
    """Hold `model` (float32) against a folder; see `layout.Layout`."""
    from transformers import Blip2QFormerModel

    theirs = read_class(Blip2QFormerModel, path, NAME)
    report = ExportReport(NAME, type(theirs).__name__)
    former = model.query_former
    _, rest = read_qformer(str(path), str(path))
    assert rest is not None, "written beside it"
    states = _image_states(former).cpu()
    text = former.embeddings(input_ids=torch.tensor([_WORDS], device=former.queries.device)).cpu()
    queries = rest["queries"].expand(len(states), -1, -1)
    reference = [
        theirs(query_embeds=queries, encoder_hidden_states=states).last_hidden_state,
        theirs(query_embeds=text, query_length=0).last_hidden_state,
    ]
    compare_outputs(report, outputs(model), reference)
    pairs = matched(former.module, theirs)
    pairs.append((former.queries, rest["queries"]))
    pairs += [(t, rest[f"image_norm.{n}"]) for n, t in former.image_norm.named_parameters()]
    compare_weights(report, pairs)
    return report
