"""LLaVA-1.5 in two stages with a real SentencePiece tokenizer: trained, exported, asked elsewhere.

The composition is LLaVA-1.5's (CLIP tower, second to last layer, two-layer perceptron, Llama), its
weights are tiny and random, its words are the 32,000 pieces of a real model.
"""

from __future__ import annotations

import io
import json
import logging

import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from diptych.convert import layout
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.model import generate as generation
from diptych.model.architectures.vlm import VlmConfig
from diptych.model.folder import build
from diptych.progress import Progress
from diptych.train.stage import Stage
from diptych.train.trainer import Trainer
from tests.field.test_chat_ids import MARKS, QWEN3, THINKING, TRIMS

pytestmark = pytest.mark.slow

TEMPLATES = {"vicuna": "vicuna", "qwen3": QWEN3, "trims": TRIMS}
NEW_TOKENS = 8
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
QUESTIONS = [
    (Turn("user", (Image("000.png"), Text("\nWhat colour is the square?"))),),
    (Turn("user", (Text("Is the square red?\n"), Image("001.png"))),),
    (
        Turn("user", (Image("002.png"), Text("What colour is the square?"))),
        Turn("assistant", (Text("blue"),)),
        Turn("user", (Text(" And now, 再说一次? "),)),
    ),
]


@pytest.fixture(scope="module", params=list(TEMPLATES))
def trained(request, sentencepiece_folder, squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = AutoTokenizer.from_pretrained(sentencepiece_folder)
    if request.param != "vicuna":
        tokenizer.add_tokens(MARKS, special_tokens=True)
        tokenizer.add_tokens(THINKING)
        tokenizer.save_pretrained(folder / "tokenizer")
    else:
        # As published: `tokenizer.model` and no tokenizer.json.
        (folder / "tokenizer").symlink_to(sentencepiece_folder)
    config = VlmConfig.from_dict(
        {
            "vision_encoder": {"config": CLIP, "layer": -2, "image": {"resize": "exact", "size": [28, 28]}},
            "connector": "mlp",
            "language_model": {
                "config": LLAMA, "tokenizer": str(folder / "tokenizer"),
                "template": TEMPLATES[request.param],
            },
        }
    )  # fmt: skip
    model = build(config, seed=0)
    data = [{"path": str(squares / "train.json"), "images": str(squares / "images")}]
    captions = [{"path": str(squares / "captions.json"), "images": str(squares / "images")}]
    shared = {"num_steps": 25, "global_batch_size": 8, "learning_rate": 1e-2, "num_workers": 0}
    stages = [
        Stage.from_dict({"name": "align", "data": captions, "learn": {"connector": {}}, **shared}),
        Stage.from_dict(
            {
                "name": "instruct",
                "data": data,
                "learn": {"connector": {}, "language_model": {}},
                **shared,
            }
        ),
    ]
    quiet = Progress(folder / "log", quiet=True)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("diptych").addHandler(handler)
    Trainer(model, stages, folder / "run", trackers=(), progress=quiet).train()
    logging.getLogger("diptych").removeHandler(handler)
    # The thinking block, and that only the last answer has it, are named once, before training.
    assert said.getvalue().count("between its invitation") == int(request.param == "qwen3")
    report = layout.export(model, "hf-llava", folder / "out")
    assert not report.problems and report.tokens_equal
    return model.eval(), folder / "out", squares / "images"


def answers(model, images) -> list[list[int]]:
    found = []
    for turns in QUESTIONS:
        encoded = model.chat_encoder.encode(Sample("q", turns), generation=True)
        pictures = generation.encode_images(
            model, [encoded], lambda i: (images / i.path).read_bytes()
        )
        steps = generation.steps(model, [encoded], pictures, NEW_TOKENS)
        found.append([step[0] for step in steps if step[0] is not None])
    return found


def answers_elsewhere(folder, images) -> list[list[int]]:
    module = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    stops = module.generation_config.eos_token_id
    found = []
    for turns in QUESTIONS:
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": p.text}
                    if isinstance(p, Text)
                    else {
                        "type": "image",
                        "image": Pillow.open(io.BytesIO((images / p.path).read_bytes())).convert(
                            "RGB"
                        ),
                    }
                    for p in turn.parts
                ],
            }
            for turn in turns
        ]
        inputs = processor.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [stops] if isinstance(stops, int) else stops
        found.append(new[: next((n for n, t in enumerate(new) if t in ends), len(new))])
    return found


def test_it_answers_there_as_here_and_again_when_it_comes_back(trained):
    model, folder, images = trained
    own = answers(model, images)
    assert all(own), "it says something"
    assert answers_elsewhere(folder, images) == own
    again, report = layout.load(folder, "hf-llava")
    assert report.tokens_equal and not report.problems and not _differ(report)
    assert answers(again.eval(), images) == own


def _differ(report) -> list[str]:
    return [note for note in report.notes if "token ids" in note]


def test_what_leaves_is_readable_elsewhere(trained):
    _, folder, _ = trained
    assert (folder / "tokenizer.json").is_file()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"
