#!/bin/sh
# pyarrow 25.0.1.
#
# A column of fixed-size lists (vectors) in which one row is null is written to Parquet without a word; reading the file
# back raises. The other columns of the file can still be read.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pyarrow==25.0.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import pyarrow as pa, pyarrow.parquet as pq
vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
pq.write_table(pa.table({"id": ["a", "b", "c"], "vector": vectors}), "vectors.parquet")
print("written")
try:
    pq.read_table("vectors.parquet")
except (pa.ArrowException, OSError, ValueError) as error:
    print("not read:", type(error).__name__, str(error).splitlines()[0][:100])
else:
    raise SystemExit("it can be read now")
print("other columns:", pq.read_table("vectors.parquet", columns=["id"]).to_pydict())
PY
