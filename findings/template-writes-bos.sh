#!/bin/sh
# transformers 5.23.0 with the 32,000-piece SentencePiece model that mistral-common 1.13.1 carries.
#
# `ProcessorMixin.apply_chat_template` and `tokenizer(text)` add the beginning token themselves, unless the rendered
# text starts with it. Both ways look the same and are not: behind an `<s>` that stands in the text no blank is put
# before the first word, so its pieces are others. A template that gains a `{{ bos_token }}`, or loses it, asks a model in
# other tokens than it was trained with.
#
# Seen: added by the tokenizer  <s> _US ER :     written in the text  <s> USER :
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
"$dir/venv/bin/pip" download -q --no-deps --dest "$dir" mistral-common==1.13.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import glob, json, pathlib, zipfile
folder = pathlib.Path("tokenizer"); folder.mkdir()
wheel = zipfile.ZipFile(glob.glob("mistral_common-*.whl")[0])
(folder / "tokenizer.model").write_bytes(wheel.read("mistral_common/data/tokenizer.model.v1"))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "add_bos_token": True, "legacy": False}))
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
names = tokenizer.convert_ids_to_tokens
added = names(tokenizer("USER: hi").input_ids)
written = names(tokenizer("<s>USER: hi", add_special_tokens=False).input_ids)
print("added by the tokenizer ", added)
print("written in the text    ", written)
assert added == ["<s>", "\u2581US", "ER", ":", "\u2581hi"], added
assert written == ["<s>", "USER", ":", "\u2581hi"], written
PY
