"""hf-llava against transformers' own LlavaForConditionalGeneration, both ways."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.convert import layout, llava_hf
from diptych.convert.chat_parts import IMAGE_MARK
from diptych.convert.llava_projector import to_projector
from diptych.data.sample import Sample, Text, Turn
from diptych.data.text.chat import TEMPLATES
from diptych.errors import CheckpointError, ConfigError, ExportMismatch, UnsafeFile
from diptych.model.adapters import LoraConfig
from diptych.model.folder import load_model, save_model
from tests.parity.small_llava import (
    CLIP,
    EXACT,
    LLAMA,
    MISTRAL,
    PADDED,
    QWEN2,
    SIGLIP,
    compose,
    save_tokenizer,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("vision", "text", "settings"),
    [
        (CLIP, LLAMA, {}),
        (CLIP, QWEN2, {"layer": None, "features": "full"}),
        (SIGLIP, MISTRAL, {"image": EXACT, "layer": -1}),
        (SIGLIP, QWEN2, {"image": EXACT}),
        (CLIP, MISTRAL, {"image": PADDED, "connector": "linear"}),
    ],
    ids=["clip-llama", "clip-qwen2-full", "siglip-mistral", "siglip-qwen2", "padded-linear"],
)
def test_there_and_back(tokenizer_folder, tmp_path, vision, text, settings):
    """Export is accepted by transformers, and what comes back computes the same."""
    model = compose(tokenizer_folder, vision, text, **settings)
    report = layout.export(model, "hf-llava", tmp_path / "out")
    assert report.tokens_equal and not report.problems and not report.notes
    assert report.max_logit_difference <= report.tolerance
    assert report.max_pixel_difference <= 1e-3
    assert report.num_cases == 6
    assert report.class_name.endswith("LlavaForConditionalGeneration")

    back, report = layout.load(tmp_path / "out", "hf-llava")
    assert report.tokens_equal and not report.problems and not report.notes
    assert back.config.connector.name == model.config.connector.name
    assert back.chat_encoder.template == model.chat_encoder.template
    ask = Sample("1", (Turn("user", (Text("What is <image> here?"),)),))
    assert back.generate([ask]) == model.generate([ask])
    mine, theirs = model.state_dict(), back.state_dict()
    rows = len(model.language_model.module.get_input_embeddings().weight)
    for name, tensor in mine.items():
        same = theirs[name][:rows] if tensor.shape != theirs[name].shape else theirs[name]
        assert torch.equal(same, tensor), name

    save_model(back, tmp_path / "diptych")
    again = layout.export(tmp_path / "diptych", "hf-llava", tmp_path / "again")
    assert again.tokens_equal
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_image_mark_is_a_real_row_that_is_never_chosen(tokenizer_folder, tmp_path):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = compose(tokenizer_folder)
    layout.export(model, "hf-llava", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    index = config["image_token_index"]
    assert processor.tokenizer.convert_tokens_to_ids(IMAGE_MARK) == index
    assert config["image_seq_length"] == model.tokens_per_image == 16
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    table = theirs.get_input_embeddings().weight
    assert index < len(table) == config["text_config"]["vocab_size"]
    old = model.language_model.module.get_output_embeddings().weight
    assert torch.allclose(theirs.lm_head.weight[index], old.mean(0), atol=1e-6)
    logits = theirs(input_ids=torch.arange(3, 200)[None]).logits[0]
    assert (logits[:, len(old) :] < logits[:, : len(old)].amax(-1, keepdim=True)).all()


def test_published_names_and_files(tokenizer_folder, tmp_path):
    """Names and files are those of the public checkpoints, which all servers read."""
    layout.export(compose(tokenizer_folder), "hf-llava", tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in names
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files >= {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_lora_is_merged_into_a_copy(tokenizer_folder, tmp_path):
    model = compose(tokenizer_folder)
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    for part in ("language_model", "vision_encoder"):
        model.add_adapters(part, LoraConfig(rank=4, alpha=8.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    report = layout.export(model, "hf-llava", tmp_path / "out")
    assert report.tokens_equal
    assert set(model.config.adapters) == {"language_model", "vision_encoder"}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("lora" in n for n in written)
    name = "layers.0.self_attn.q_proj.weight"
    base = plain[f"language_model.module.model.{name}"]
    assert not torch.allclose(written[f"language_model.model.{name}"], base, atol=1e-3)


def test_bfloat16_is_stored_and_its_rounding_reported(tokenizer_folder, tmp_path):
    model = compose(tokenizer_folder, dtype="bfloat16")
    report = layout.export(model, "hf-llava", tmp_path / "out")
    assert report.tokens_equal and report.max_logit_difference <= report.tolerance
    assert report.rounding_difference > report.tolerance
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    back, _ = layout.load(tmp_path / "out", "hf-llava")
    assert back.config.language_model.dtype == "bfloat16"


@pytest.mark.parametrize(("vision", "text"), [(CLIP, LLAMA), (SIGLIP, QWEN2), (CLIP, MISTRAL)])
def test_reads_what_transformers_wrote(tokenizer_folder, tmp_path, vision, text):
    """A folder of random weights that Diptych never saw, saved by transformers."""
    from transformers import (
        CONFIG_MAPPING,
        AutoTokenizer,
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
    has_class = vision is CLIP
    values = {k: v for k, v in {**text, "vocab_size": len(tokenizer)}.items() if k != "model_type"}
    torch.manual_seed(5)
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CONFIG_MAPPING[vision["model_type"]](
                **{k: v for k, v in vision.items() if k != "model_type"}
            ),
            text_config=CONFIG_MAPPING[text["model_type"]](**values),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
            vision_feature_select_strategy="default" if has_class else "full",
            multimodal_projector_bias=text is not MISTRAL,
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default" if has_class else "full",
        num_additional_image_tokens=int(has_class),
        chat_template=TEMPLATES["chatml"] if text is MISTRAL else template,
    ).save_pretrained(tmp_path / "theirs")

    model, report = layout.load(tmp_path / "theirs", "hf-llava")
    assert report.tokens_equal
    assert report.max_logit_difference <= report.tolerance
    assert model.tokens_per_image == 16
    # A template that takes text only cannot render what a processor hands it; that is noted.
    assert bool(report.notes) == (text is MISTRAL)
    save_model(model, tmp_path / "diptych")
    same = load_model(tmp_path / "diptych")
    ask = Sample("1", (Turn("user", (Text("What is shown here?"),)),))
    assert same.generate([ask]) == model.generate([ask])


@pytest.mark.slow
@pytest.mark.parametrize("text", [LLAMA, QWEN2], ids=["untied", "tied"])
def test_damaged_export_is_refused(tokenizer_folder, tmp_path, monkeypatch, text):
    """One weight off, a wrong layer, a lost weight: nothing is written, the old stays."""
    from safetensors.torch import save_file

    model = compose(tokenizer_folder, CLIP, text)
    out = tmp_path / "out"
    layout.export(model, "hf-llava", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    whole = llava_hf.HfLlava().write

    def with_weights(change):
        def damaged(model, folder):
            weights = whole(model, folder)
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return weights

        return damaged

    def with_config(file, key, value):
        def damaged(model, folder):
            weights = whole(model, folder)
            values = json.loads((folder / file).read_text())
            values[key] = value
            (folder / file).write_text(json.dumps(values))
            return weights

        return damaged

    def cut(model, folder):
        weights = whole(model, folder)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        return weights

    projector = "multi_modal_projector.linear_2.weight"
    embedding = "language_model.model.embed_tokens.weight"  # of a row that no probe reads
    damages = {
        "logits": with_weights(lambda t: t[projector][0, 0].add_(1.0)),
        "not what was written": with_weights(lambda t: t[embedding][250, 0].add_(1e-4)),
        "missing": with_weights(lambda t: t.pop(projector)),
        "cannot read": cut,
        "logits differ": with_config("config.json", "vision_feature_layer", -1),
        "fails on": with_config("config.json", "vision_feature_select_strategy", "full"),
        "stops at": with_config("generation_config.json", "eos_token_id", 7),
        "pixels": with_config("preprocessor_config.json", "image_mean", [0.4, 0.5, 0.5]),
        "chat template": with_config("processor_config.json", "num_additional_image_tokens", 0),
    }
    for message, damage in damages.items():
        monkeypatch.setattr(llava_hf.HfLlava, "write", staticmethod(damage))
        with pytest.raises(ExportMismatch, match=message):
            layout.export(model, "hf-llava", out)
        with pytest.raises(ExportMismatch):
            layout.export(model, "hf-llava", tmp_path / "new")
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_tokenizer_adds_nothing_that_the_template_does_not_write(tokenizer_folder, tmp_path):
    """A tokenizer that puts a start token before every text would differ from training."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    mark = "<|endoftext|>"
    tokenizer.bos_token = mark
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A $B", special_tokens=[(mark, 0)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for template in (None, "{{ bos_token }}" + TEMPLATES["chatml"]):
        model = compose(tmp_path / "tokenizer", template=template)
        report = layout.export(model, "hf-llava", tmp_path / "out")
        assert report.tokens_equal and not report.notes


def test_other_vision_transformers(tokenizer_folder, tmp_path):
    """A tower that servers may not know is exported all the same, and the report says so."""
    vit = {**CLIP, "model_type": "vit"}
    model = compose(tokenizer_folder, vit, layer=-1, image=EXACT)
    report = layout.export(model, "hf-llava", tmp_path / "out")
    assert report.tokens_equal and "servers" in report.notes[0]


def test_linear_identity_is_exact(tokenizer_folder):
    """[W, -W, 0] relu([I; -I; 0] x) is W x, to rounding of the sum's order."""
    model = compose(tokenizer_folder, connector="linear")
    weights, activation = to_projector(model)
    assert activation == "relu"
    features = torch.randn(5, 16)
    inner = (features @ weights["linear_1.weight"].T + weights["linear_1.bias"]).relu()
    assert torch.equal(inner[:, :16] - inner[:, 16:32], features)
    outer = inner @ weights["linear_2.weight"].T + weights["linear_2.bias"]
    assert torch.allclose(outer, model.connector(features[None], (1, 5))[0], atol=1e-6)


def test_what_does_not_fit_is_refused_with_a_way_out(tokenizer_folder, tmp_path):
    wide = {**CLIP, "hidden_size": 24}
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    cases = [
        (compose(tokenizer_folder, wide, connector="linear"), "twice the encoder's width"),
        (compose(tokenizer_folder, connector="pixel_shuffle"), "not pixel_shuffle"),
        (compose(tokenizer_folder, connector="downsample"), "not downsample"),
        (compose(tokenizer_folder, connector="resampler"), "not resampler"),
        (compose(tokenizer_folder, SIGLIP, layer=None, image=EXACT), "final normalisation"),
        (compose(tokenizer_folder, resnet, layer=None, image=EXACT), "not a resnet"),
    ]
    for model, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            layout.export(model, "hf-llava", tmp_path / "out")
        assert caught.value.fix and caught.value.where
        assert not list(tmp_path.iterdir())


def test_only_an_earlier_export_is_replaced(tokenizer_folder, tmp_path):
    model = compose(tokenizer_folder)
    save_model(model, tmp_path / "mine")
    with pytest.raises(ConfigError, match="not an earlier export"):
        layout.export(tmp_path / "mine", "hf-llava", tmp_path / "mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="not an earlier export"):
        layout.export(model, "hf-llava", tmp_path / "photos")
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"x"
    layout.export(tmp_path / "mine", "hf-llava", tmp_path / "out")
    layout.export(tmp_path / "mine", "hf-llava", tmp_path / "out")


def test_folders_that_cannot_be_read(tokenizer_folder, tmp_path):
    model = compose(tokenizer_folder)
    save_model(model, tmp_path / "mine")
    with pytest.raises(CheckpointError, match="no LLaVA model"):
        layout.load(tmp_path / "mine", "hf-llava")
    out = tmp_path / "out"
    layout.export(model, "hf-llava", out)
    config = json.loads((out / "config.json").read_text())
    for key, value in (
        ("projector_hidden_act", "silu"),
        ("vision_feature_layer", [-2, -1]),
    ):
        (out / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError):
            layout.load(out, "hf-llava")
    (out / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        layout.load(out, "hf-llava")
    (out / "config.json").write_text(json.dumps(config))
    (out / "model.safetensors").rename(out / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no PyTorch checkpoint"):
        layout.load(out, "hf-llava")
    (out / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(UnsafeFile, match="print"):
        layout.load(out, "hf-llava")
