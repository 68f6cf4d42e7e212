"""Tokenizers as the field has them: a real SentencePiece model, and one of every other kind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

WHEELS = Path(__file__).parents[2] / ".venv/field"
TEXTS = [
    "What colour is the square? red green blue yellow how many yes no Describe the picture.",
    "USER ASSISTANT Question Answer user assistant system a small large left right one two three",
    "这是什么颜色的正方形？红色。有几个？两个。",
] * 4


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory) -> Path:
    """A folder with `tokenizer.model` alone: 32,000 pieces, out of the package mistral-common."""
    wheels = sorted(WHEELS.glob("mistral_common-*.whl"))
    if not wheels:
        pytest.fail(f"no wheel of mistral-common in {WHEELS}; `make test` downloads it")
    folder = tmp_path_factory.mktemp("sentencepiece")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        model = wheel.read("mistral_common/data/tokenizer.model.v1")
    (folder / "tokenizer.model").write_bytes(model)
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
        "legacy": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def saved(tokenizer, folder: Path, **names: str) -> Path:
    from transformers import PreTrainedTokenizerFast

    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **names}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folders(tokenizer_folder, sentencepiece_folder, tmp_path_factory) -> dict[str, Path]:
    """One folder for every kind of tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    marks = ["<unk>", "<s>", "</s>", "<pad>"]
    begins = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(TEXTS, trainer)

    # As LlamaTokenizer was before: a blank is put before every piece of text between marks.
    legacy = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    legacy.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    legacy.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    alphabet = [f"<0x{b:02X}>" for b in range(256)]
    legacy.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=[*marks, *alphabet], show_progress=False
        ),
    )
    # Bytes are pieces like others, not added tokens.
    values = json.loads(legacy.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] in marks]
    legacy = Tokenizer.from_str(json.dumps(values))
    legacy.post_processor = begins

    pieces = Tokenizer(models.WordPiece(unk_token="<unk>"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    pieces.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=marks, show_progress=False)
    )
    pieces.post_processor = begins

    new = tmp_path_factory.mktemp
    return {
        "byte-level": tokenizer_folder,
        "sentencepiece": sentencepiece_folder,
        "unigram": saved(unigram, new("unigram"), bos_token="<s>"),
        "legacy llama": saved(legacy, new("legacy"), bos_token="<s>"),
        "wordpiece": saved(pieces, new("wordpiece"), bos_token="<s>"),
    }
