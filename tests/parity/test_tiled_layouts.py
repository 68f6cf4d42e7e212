"""hf-llava-next and hf-internvl against transformers' own classes, both ways.

The gate itself compares pictures of different sizes, several of them, none, alone and in batches
padded on either side, greedy tokens, pixels and chat ids; here it has to open, and to close.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.convert import layout
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import CheckpointError, ConfigError, ExportMismatch
from diptych.model.folder import load_model, save_model
from diptych.model.published import layout_of
from tests.conftest import square
from tests.parity.small_llava import CLIP, LLAMA, MISTRAL, QWEN2, SIGLIP, compose, save_tokenizer

MARKS = ("<img>", "</img>")
INTERN = {
    "model_type": "internvl_vision",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": [32, 32],
    "patch_size": [8, 8],
    "attention_bias": True,
}
RMS = {**INTERN, "norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
LONG = {"max_position_embeddings": 1024}


def anyres(**tiling) -> Preprocessing:
    return Preprocessing.from_dict(
        {
            "resize": "shortest_edge", "size": [32, 32], "crop": [32, 32],
            "tiling": {"name": "anyres", "tile": 32, **tiling},
        }
    )  # fmt: skip


def dynamic(**tiling) -> Preprocessing:
    return Preprocessing.from_dict(
        {"size": [32, 32], "tiling": {"name": "dynamic", "tile": 32, "max_tiles": 6, **tiling}}
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def llava_next(tokenizer: Path, vision=CLIP, text=LLAMA, image=None, **more):
    return compose(tokenizer, vision, {**text, **LONG}, image=image or anyres(), **more)


def internvl(tokenizer: Path, vision=INTERN, text=LLAMA, image=None, **more):
    return compose(
        tokenizer, vision, {**text, **LONG}, image=image or dynamic(),
        **{"connector": "pixel_shuffle", "layer": None, "picture_marks": MARKS, **more},
    )  # fmt: skip


NEXT = {
    "clip, llama": {},
    "siglip, qwen2, tied": {
        "vision": SIGLIP, "text": QWEN2, "image": Preprocessing.from_dict(
            {"size": [32, 32], "tiling": {"name": "anyres", "tile": 32}}
        ),
    },
    "mistral, other grids": {"text": MISTRAL, "image": anyres(grids=[[1, 1], [2, 2], [1, 3]])},
    "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip
CHAT = {
    "internvit, llama": {},
    "rms norm, qwen2, tied": {"vision": RMS, "text": QWEN2},
    "an inner layer": {"layer": -2},
    "one tile": {"image": Preprocessing(size=(32, 32))},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("settings", NEXT.values(), ids=NEXT)
def test_llava_next_leaves_and_comes_back(tokenizer, settings, tmp_path):
    there_and_back(llava_next(tokenizer, **settings), "hf-llava-next", tmp_path)


@pytest.mark.parametrize("settings", CHAT.values(), ids=CHAT)
def test_internvl_leaves_and_comes_back(tokenizer, settings, tmp_path):
    there_and_back(internvl(tokenizer, **settings), "hf-internvl", tmp_path)


def there_and_back(model, name, tmp_path):
    save_model(model, tmp_path / "model")
    report = layout.export(tmp_path / "model", name, tmp_path / "out")
    assert not report.problems and report.tokens_equal
    assert not [note for note in report.notes if "chat template" in note]
    assert report.max_logit_difference <= report.tolerance
    assert layout_of(tmp_path / "out") == name
    again, report = layout.load(tmp_path / "out", name)
    assert not report.problems
    for size in ((70, 40), (32, 32), (10, 300)):
        ours, theirs = (m.arrangement.tiling.plan(*size) for m in (model, again))
        assert model.arrangement.num_tokens(ours) == again.arrangement.num_tokens(theirs)
    kept = getattr(torch, model.config.language_model.dtype)
    own, known = (dict(m.named_parameters()) for m in (load_model(tmp_path / "model"), again))
    for part in ("vision_encoder.", "connector."):
        for key in [k for k in own if k.startswith(part)]:
            assert torch.equal(own[key].to(kept).float(), known[key].float()), key
    # What came back leaves again as the same files.
    layout.export(again, name, tmp_path / "again")
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        first, second = ((tmp_path / f / file).read_text() for f in ("out", "again"))
        assert json.loads(first) == json.loads(second), file


def test_transformers_own_processor_counts_and_reads_what_was_exported(tokenizer, tmp_path):
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration

    model = llava_next(tokenizer)
    layout.export(model, "hf-llava-next", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    import io

    from PIL import Image as Pillow

    data = square("red", 40)
    shown = Pillow.open(io.BytesIO(data)).resize((70, 40))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    words = [{"type": "image"}, {"type": "text", "text": "What is shown here?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": words}], add_generation_prompt=True
    )
    inputs = processor(images=shown, text=text, return_tensors="pt")
    turns = (Turn("user", (Image("a.png", buffer.getvalue()), Text("What is shown here?"))),)
    encoded = model.chat_encoder.encode(Sample("", turns), generation=True)
    assert len(encoded) == inputs["input_ids"].shape[1]
    out = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)
    said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    [own] = model.generate([Sample("", turns)], max_new_tokens=6, images=lambda i: i.data)
    assert own.strip() == said.strip()


@pytest.mark.parametrize(
    ("model", "name", "says"),
    [
        (lambda t: llava_next(t), "hf-llava", "cut by single, this model cuts them by anyres"),
        (lambda t: llava_next(t), "hf-internvl", "this model cuts them by anyres"),
        (lambda t: internvl(t), "hf-llava-next", "this model cuts them by dynamic"),
        (lambda t: internvl(t, picture_marks=None), "hf-internvl", "around every picture"),
        (lambda t: internvl(t, connector="mlp"), "hf-internvl", "holds the connector pixel_shuffle"),
        (lambda t: compose(t), "hf-llava-next", "this model cuts them by single"),
        (lambda t: llava_next(t, image=anyres(rounded=False)), "hf-llava-next", "no image processor"),
        (lambda t: internvl(t, image=dynamic(thumbnail=False)), "hf-internvl", "no image processor"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_hold_is_refused(tokenizer, model, name, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        layout.export(model(tokenizer), name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["row_end", "norm", "order"])
def test_the_gate_stays_shut_when_something_else_is_computed(
    tokenizer, what, tmp_path, monkeypatch
):
    from diptych.convert.internvl_layout import HfInternVl
    from diptych.convert.llava_hf import HfLlavaNext

    kind = HfLlavaNext if what == "row_end" else HfInternVl
    true = kind.projector

    def wrong(self, model):
        tensors, activation = true(self, model)
        key = {"row_end": "row_end", "norm": "layer_norm.weight", "order": "linear_1.weight"}[what]
        return {**tensors, key: tensors[key].flip(-1)}, activation

    monkeypatch.setattr(kind, "projector", wrong)
    model = llava_next(tokenizer) if what == "row_end" else internvl(tokenizer)
    with pytest.raises(ExportMismatch, match="computes something else"):
        layout.export(model, kind.name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_processor_that_cuts_otherwise_than_the_config_is_refused(tokenizer, tmp_path):
    layout.export(llava_next(tokenizer), "hf-llava-next", tmp_path / "out")
    file = tmp_path / "out" / "preprocessor_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "image_grid_pinpoints": [[32, 64], [96, 96]]}))
    with pytest.raises(CheckpointError, match="cuts pictures otherwise"):
        layout.load(tmp_path / "out", "hf-llava-next")


def test_marks_around_pictures_are_never_cut_off(tokenizer):
    from diptych.data.text.chat import truncate

    model = internvl(tokenizer)
    turns = (
        Turn("user", (Image("a.png", square("red"), size=(28, 28)), Text("what?"))),
        Turn("assistant", (Text("a long answer to that"),)),
    )
    encoded = model.chat_encoder.encode(Sample("", turns))
    behind = model.tokenizer.convert_tokens_to_ids(MARKS[1])
    at = encoded.ids.index(behind)
    assert encoded.prefix_length() == at + 1
    assert truncate(encoded, at + 1).ids[-1] == behind
    plain = replace(Sample("", turns), turns=(Turn("user", (Text("<img> and </img>"),)),))
    typed = model.chat_encoder.encode(plain, generation=True)
    assert behind not in typed.ids  # what a person typed binds to nothing


def test_the_command_reads_a_folder_and_writes_it_as_it_came(tokenizer, tmp_path):
    from diptych.cli.leave import convert_model

    layout.export(internvl(tokenizer), "hf-internvl", tmp_path / "theirs")
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert convert_model(str(tmp_path / "theirs"), ours, None, "hf-internvl")["tokens_equal"]
    assert convert_model(str(ours), again, "same", None)["layout"] == "hf-internvl"
    save_model(internvl(tokenizer), tmp_path / "new")
    with pytest.raises(ConfigError, match="did not come in a layout"):
        convert_model(str(tmp_path / "new"), tmp_path / "out", "same", None)
