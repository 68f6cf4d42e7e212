#!/bin/sh
# lancedb 0.40.0.
#
# With `distance_type("cosine")`, `_distance` is 1 - cos without an index. After an IVF_HNSW_SQ index is built on the same
# rows the same query gives twice that. A vector of zeros is in the table, is counted, and is in no cosine answer.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q lancedb==0.40.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import lancedb, numpy as np
from lancedb.index import HnswSq
rng = np.random.default_rng(0)
vectors = rng.normal(size=(2000, 32)).astype(np.float32)
vectors[7] = 0
db = lancedb.connect("db")
table = db.create_table("t", [{"id": n, "vector": v} for n, v in enumerate(vectors)])
query = vectors[3] + 0.1 * vectors[4]
def ask(limit):
    return table.search(query).distance_type("cosine").limit(limit).to_list()
plain = {r["id"]: r["_distance"] for r in ask(2000)}
true = 1 - float(vectors[3] @ query / np.linalg.norm(vectors[3]) / np.linalg.norm(query))
print("rows", table.count_rows(), "answers", len(plain), "zero vector among them:", 7 in plain)
import inspect
try:
    table.create_index("vector", config=HnswSq(distance_type="cosine"))
except TypeError:
    table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_HNSW_SQ")
quantised = {r["id"]: r["_distance"] for r in ask(10)}
print(f"1 - cos {true:.5f}, without an index {plain[3]:.5f}, with IVF_HNSW_SQ {quantised[3]:.5f}")
assert 7 not in plain and len(plain) == 1999
assert abs(plain[3] - true) < 1e-4 and 1.8 < quantised[3] / true < 2.2
PY
