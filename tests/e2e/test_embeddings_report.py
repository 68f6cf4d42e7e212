"""Two models' vectors of the same rows on one page, and the demonstration as one command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.embed import atlas
from diptych.embed.sink import About, Shard
from diptych.embed.sinks import parquet
from diptych.embed.vectors import Vectors
from diptych.errors import DataError

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")


def vectors(n=60, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 16))
    groups = [f"group {i % 3}" for i in range(n)]
    apart = np.stack([centres[i % 3] * 4 + rng.normal(size=16) for i in range(n)])
    return apart.astype(np.float32), groups


def test_figures_tell_a_useful_space_from_a_collapsed_one():
    apart, groups = vectors()
    collapsed = np.ones((60, 16), np.float32) + 1e-4 * np.random.default_rng(1).normal(
        size=(60, 16)
    )
    drawn = atlas.draw(collapsed.astype(np.float32), apart, groups)
    before, after = drawn["figures"]
    assert before["mean_cosine"] > 0.999 and before["duplicates"] == 60
    assert after["mean_cosine"] < 0.9 and after["duplicates"] == 0
    assert after["silhouette"] > 0.3 > before["silhouette"]
    assert 1 <= after["effective_dim"] <= 16 and after["dim"] == 16
    assert drawn["neighbours"]["share_kept"] < 0.5
    points = np.array(drawn["maps"][1])
    assert points.shape == (60, 2) and points.min() == 0 and points.max() == 1
    # Points of a group lie together: their mean distance is smaller than that of all.
    own = np.mean([np.linalg.norm(points[i] - points[i + 3]) for i in range(0, 57)])
    other = np.mean([np.linalg.norm(points[i] - points[i + 1]) for i in range(0, 57)])
    assert own < 0.6 * other


def test_figures_by_hand():
    rows = np.array([[1, 0], [0, 1], [0, -1]], np.float32)
    found = atlas.figures(rows, ["a", "b", "b"])
    # Cosines of the three pairs: 0, 0 and -1.
    assert found["mean_cosine"] == pytest.approx(-1 / 3)
    # Eigenvalues of the covariance: 1 and 1/3.
    assert found["effective_dim"] == pytest.approx((4 / 3) ** 2 / (1 + 1 / 9))
    # Silhouettes by cosine distance: 0 for the one alone, (1 - 2) / 2 for the others.
    assert found["silhouette"] == pytest.approx(-1 / 3)


def test_the_same_neighbours_are_all_kept():
    apart, _ = vectors()
    drawn = atlas.draw(apart, 3 * apart)
    assert drawn["neighbours"]["share_kept"] == 1.0 and drawn["groups"] is None


def test_rows_in_common_are_drawn_by_seed():
    a, b = [f"{n}" for n in range(100)], [f"{n}" for n in range(50, 150)]
    found = atlas.sample(a, b, 20, seed=3)
    assert len(found) == 20 and set(found) <= set(b) and found == sorted(found, key=int)
    assert found == atlas.sample(a, b, 20, seed=3) != atlas.sample(a, b, 20, seed=4)
    with pytest.raises(DataError, match="2 rows in common"):
        atlas.sample(a[:2], a, 5)


def store(folder, values, fingerprint, pictures):
    about = About(fingerprint, "image", "float32", ("shelf",), data="set", root=str(pictures))
    rows = [
        {
            "image": f"{('red', 'green', 'blue')[n % 3]}.png",
            "text": f"<b>item {n}</b>",
            "shelf": f"s{n % 3}",
        }
        for n in range(len(values))
    ]
    sink = parquet.open(f"parquet:{folder}", about)
    sink.write(Shard(0, [f"row {n}" for n in range(len(values))], Vectors(values), rows, 1))


def test_the_page_shows_both_maps_and_hostile_texts_as_text(squares, tmp_path):
    apart, _ = vectors()
    store(tmp_path / "a", vectors(seed=5)[0], "aaaaaaaaaaaa", squares / "images")
    store(tmp_path / "a", apart, "bbbbbbbbbbbb", squares / "images")
    called = CliRunner().invoke(app, [
        "report", "embeddings", f"parquet:{tmp_path}/a#image-aaaaaaaaaaaa",
        f"parquet:{tmp_path}/a#image-bbbbbbbbbbbb", "--out", str(tmp_path / "page"), "--num", "40",
        "--field", "shelf", "--json",
    ])  # fmt: skip
    assert called.exit_code == 0, called.stderr
    found = json.loads(called.stdout)
    assert found["rows"] == 40 and 0 <= found["neighbours_kept"] <= 1
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<circle") == 2 * 40 + 3 and "data:image/webp" in page
    assert "<b>item" not in page and "Silhouette" in page
    missing = CliRunner().invoke(app, [
        "report", "embeddings", f"parquet:{tmp_path}/a#image-aaaaaaaaaaaa",
        f"parquet:{tmp_path}/a#image-bbbbbbbbbbbb", "--field", "nothing", "--json",
    ])  # fmt: skip
    assert missing.exit_code == 2 and "no field 'nothing'" in missing.stdout


def test_the_demonstration_in_small(squares, tmp_path, tokenizer_folder):
    corpus = tmp_path / "pictures"
    shutil.copytree(squares / "images", corpus / "images")
    rows = json.loads((squares / "captions.json").read_text())
    lines = [
        json.dumps(
            {**row, "image": f"images/{row['image']}", "category": row["caption"].split()[0]}
        )
        for row in rows
    ]
    for name in ("train", "test"):
        (corpus / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    query = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "vocab_size": 512}  # fmt: skip
    words = [
        "report", "demonstration", str(corpus), "--out", str(tmp_path / "demo"), "--json",
        "--set", "model.vision_encoder.weights=null", "--set", f"model.vision_encoder.config={vision}",
        "--set", "model.vision_encoder.image={resize: exact, size: [32, 32]}",
        "--set", f"model.query_former.config={query}", "--set", "model.query_former.tokenizer=data",
        "--set", "stages.represent.num_steps=4", "--set", "stages.represent.global_batch_size=8",
        "--set", "stages.represent.num_workers=0", "--set", "stages.represent.precision=float32",
        "--set", "stages.represent.augment=null", "--set", "trackers=[]",
    ]  # fmt: skip
    called = CliRunner().invoke(app, words)
    assert called.exit_code == 0, called.stdout + called.stderr
    found = json.loads(called.stdout)
    assert found["rows"] == 24 and found["dim"] == 16 and found["steps"] == 4
    assert len(found["recall@1"]) == 2 and len(found["figures"]) == 2
    assert found["neighbours_kept"] < 1, "training moved something"
    again = CliRunner().invoke(app, words)
    assert json.loads(again.stdout)["figures"] == found["figures"]
