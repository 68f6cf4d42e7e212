#!/bin/sh
# datasets 5.2.0 with pyarrow 25.0.1.
#
# Chat rows whose `content` is text in one message and a list of parts in another have no common Arrow type. `datasets`
# does not refuse them: it turns the messages' content into JSON text, and says so only by the extension type
# `arrow.json`. The same happens to `id` where numbers and text mix. A reader that looks at the values alone sees text.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q datasets==5.2.0 pyarrow==25.0.1
cd "$dir"
HF_HUB_OFFLINE=1 HF_HOME="$dir/hf" "$dir/venv/bin/python" - <<'PY'
import json, pathlib
rows = [
    {"id": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
                           {"role": "assistant", "content": "ho"}]},
    {"id": "two", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
]
pathlib.Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
from datasets import load_dataset
import pyarrow.parquet as pq
data = load_dataset("json", data_files="rows.jsonl", split="train")
data.to_parquet("rows.parquet")
table = pq.read_table("rows.parquet")
for field in table.schema:
    print(field.name, "|", field.type)
first = table.to_pylist()[0]
print(first)
text = json.dumps(first["messages"])
assert "json" in str(table.schema).lower(), table.schema
inner = first["messages"] if isinstance(first["messages"], str) else first["messages"][1]["content"]
assert isinstance(inner, str) and inner != "ho", inner
PY
