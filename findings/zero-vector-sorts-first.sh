#!/bin/sh
# duckdb 2.0.0 with pyarrow 25.0.1.
#
# A fixed-size list of floats in Parquet arrives as a list, `FLOAT[]`, and needs a cast before `array_cosine_similarity`.
# The similarity of a vector of zeros is NaN: it sorts first under DESC, passes `>= 0.9`, and makes the average NaN.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q duckdb==2.0.0 pyarrow==25.0.1 pytz==2026.1 || "$dir/venv/bin/pip" install -q duckdb==2.0.0 pyarrow==25.0.1 pytz
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import duckdb, pyarrow as pa, pyarrow.parquet as pq
rows = pa.array([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]], pa.list_(pa.float32(), 2))
pq.write_table(pa.table({"id": ["same", "zero", "near"], "vector": rows}), "v.parquet")
kind = duckdb.sql("select typeof(vector) from 'v.parquet' limit 1").fetchall()[0][0]
print("type", kind)
assert kind == "FLOAT[]", kind
say = "array_cosine_similarity(vector::FLOAT[2], [1, 0]::FLOAT[2])"
try:
    duckdb.sql(f"select {say.replace('::FLOAT[2]', '', 1)} from 'v.parquet'").fetchall()
    raise SystemExit("no cast is needed now")
except duckdb.Error as error:
    print("without a cast:", str(error).splitlines()[0][:90])
order = duckdb.sql(f"select id, {say} as s from 'v.parquet' order by s desc").fetchall()
close = duckdb.sql(f"select id from 'v.parquet' where {say} >= 0.9 order by id").fetchall()
print("order", order, "at least 0.9", close)
assert order[0][0] == "zero" and order[0][1] != order[0][1]
assert close == [("same",), ("zero",)]
PY
