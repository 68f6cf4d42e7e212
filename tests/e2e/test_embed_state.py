"""One folder of state, many ways to misuse it: nothing is overwritten, nothing goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from diptych.embed import job as module
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.job import JobConfig
from diptych.embed.query import query
from diptych.embed.state import State
from diptych.embed.vector_index import open_vectors
from diptych.errors import ConfigError, DataError
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, load_model, save_model
from diptych.progress import Progress
from tests.conftest import square

pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
NAMES = ("red", "green", "blue", "red 2", "green 2", "blue 2", "red 3", "green 3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_dual):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(build(config_from_dict(tiny_dual("clip")), seed=1), folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "images").mkdir()
    for n, name in enumerate(NAMES):
        (tmp_path / "images" / f"{name}.png").write_bytes(square(name.split()[0], seed=n))
    found = [{"id": c, "image": f"images/{c}.png", "caption": f"{c} square"} for c in NAMES]
    write(tmp_path / "rows.jsonl", found)
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def run(trained, folder, data="rows.jsonl", to=None, state="state", images=None, **job):
    embedder = Embedder(load_model(trained), EmbedConfig(batch_size=2), str(trained))
    config = JobConfig(
        to=(to or f"parquet:{folder / 'out'}",), state=folder / state, shard_rows=3, **job
    )
    quiet = Progress(quiet=True)
    return module.embed(embedder, str(folder / data), config, progress=quiet, images=images)


def parts(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("part-*.parquet")}


def texts(folder):
    found = query(folder / "out", "select id, text from vectors order by id")
    return dict(found["rows"])


def test_another_state_folder_does_not_overwrite(trained, tmp_path, rows):
    run(trained, tmp_path)
    before = parts(tmp_path)
    with pytest.raises(ConfigError, match="belong to a job with another state folder"):
        run(trained, tmp_path, state="other", limit=2)
    assert parts(tmp_path) == before and len(texts(tmp_path)) == 8


def test_a_place_that_cannot_be_opened_claims_nothing(trained, tmp_path, rows):
    with pytest.raises(ConfigError, match="names no place"):
        run(trained, tmp_path, to="vectors")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a folder"):
        run(trained, tmp_path, to=f"parquet:{tmp_path / 'file'}")
    assert run(trained, tmp_path)["written"] == 8
    with pytest.raises(ConfigError, match="this job's vectors go to") as caught:
        run(trained, tmp_path, to=f"parquet:{tmp_path / 'elsewhere'}")
    assert "store check" in caught.value.fix


def test_one_place_under_two_names_is_one_place(trained, tmp_path, rows, monkeypatch):
    run(trained, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(trained, tmp_path, to="parquet:out")["skipped"] == 8
    with pytest.raises(ConfigError, match="local folders only"):
        run(trained, tmp_path, to="parquet:s3://bucket/out", state="other")


def test_a_run_that_wrote_nothing_binds_nobody(trained, tmp_path, rows):
    with pytest.raises(DataError, match="no such image folder"):
        run(trained, tmp_path, images=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    wrong = run(trained, tmp_path, images=str(tmp_path / "empty"))
    assert (wrong["written"], wrong["rejected"]) == (0, 8)
    assert run(trained, tmp_path)["written"] == 8
    assert not list((tmp_path / "state" / "rejects").glob("*"))


def test_two_processes_do_not_work_in_one_state_folder(trained, tmp_path, rows):
    held = State(tmp_path / "state")
    with pytest.raises(ConfigError, match="another process"):
        run(trained, tmp_path)
    held.close()
    assert run(trained, tmp_path)["written"] == 8


def test_a_row_changed_while_the_run_was_stopped_is_there_once_and_new(trained, tmp_path, rows):
    run(trained, tmp_path, limit=3)
    file = tmp_path / "state" / "run.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "finished": False}))  # as a kill leaves it
    rows[0]["caption"] = "another red square"
    write(tmp_path / "rows.jsonl", rows)
    run(trained, tmp_path)
    assert texts(tmp_path)["red"] == "another red square"
    stored = open_vectors(f"parquet:{tmp_path / 'out'}")
    assert sorted(stored.ids()) == sorted(NAMES)  # each once
    assert stored.take(["red"])[1][0]["text"] == "another red square"


def test_going_back_to_an_earlier_value_is_a_change(trained, tmp_path, rows):
    for caption in ("one", "two", "one"):
        rows[2]["caption"] = caption
        write(tmp_path / "rows.jsonl", rows)
        # The same time each time: what comes later still counts.
        run(trained, tmp_path, event_time_ns=1_700_000_000_000_000_000)
        assert texts(tmp_path)["blue"] == caption
    assert len(query(tmp_path / "out", "select * from history")["rows"]) == 10


def test_a_shard_written_again_keeps_its_time_and_its_bytes(trained, tmp_path, rows):
    run(trained, tmp_path)
    before = parts(tmp_path)
    names = sorted(tmp_path.rglob("part-*.parquet"))
    names[0].unlink()
    names[2].write_bytes(b"PAR1")  # the last, shorter one
    assert run(trained, tmp_path, verify=True)["written"] == 5
    assert parts(tmp_path) == before


def test_a_file_that_has_an_end_and_cannot_be_read_is_written_again(trained, tmp_path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run(trained, tmp_path)
    before = parts(tmp_path)
    damaged = sorted(tmp_path.rglob("part-*.parquet"))[0]
    table = pq.read_table(damaged)
    place, kind = table.schema.get_field_index("vector"), table.schema.field("vector").type
    # pyarrow writes a null among lists of a fixed size, and cannot read it again.
    holed = pa.array([None, *table["vector"].to_pylist()[1:]], kind)
    pq.write_table(table.set_column(place, "vector", holed), damaged)
    with pytest.raises(DataError, match="cannot be read") as caught:
        open_vectors(f"parquet:{tmp_path / 'out'}").some(8)
    assert "--verify" in caught.value.fix
    assert run(trained, tmp_path, verify=True)["written"] == 3
    assert parts(tmp_path) == before


def test_everything_again_on_request(trained, tmp_path, rows):
    # With one time for both runs each row is still there once.
    first = run(trained, tmp_path, event_time_ns=1_700_000_000_000_000_000)
    again = run(trained, tmp_path, again=True, event_time_ns=1_700_000_000_000_000_000)
    assert first["written"] == again["written"] == 8
    assert len(open_vectors(f"parquet:{tmp_path / 'out'}")) == 8


def test_rows_without_ids_of_two_data_sets_keep_apart(trained, tmp_path, rows):
    nameless = [{k: v for k, v in row.items() if k != "id"} for row in rows]
    write(tmp_path / "first.jsonl", nameless[:4])
    write(tmp_path / "second.jsonl", nameless[4:])
    run(trained, tmp_path, "first.jsonl", state="a")
    run(trained, tmp_path, "second.jsonl", state="b")
    found = texts(tmp_path)
    assert sorted(found.values()) == sorted(row["caption"] for row in rows)


@pytest.mark.parametrize("name", ["id", "vector", "event_time", "score", "text"])
def test_names_that_mean_something_else_are_no_kept_fields(trained, tmp_path, rows, name):
    with pytest.raises(ConfigError, match="has a meaning beside a vector"):
        run(trained, tmp_path, fields=(name,))


def test_kept_fields_are_there_and_stay_the_same(trained, tmp_path, rows):
    with pytest.raises(ConfigError, match="no row has a field 'shelf'"):
        run(trained, tmp_path, fields=("shelf",))
    write(tmp_path / "rows.jsonl", [{**row, "shelf": n} for n, row in enumerate(rows)])
    run(trained, tmp_path)
    with pytest.raises(ConfigError, match=r"keeps the fields \(none\)"):
        run(trained, tmp_path, fields=("shelf",))
    run(trained, tmp_path, fields=("shelf",), again=True)
    found = query(tmp_path / "out", "select id, shelf from vectors")["rows"]
    assert dict(found) == {c: str(n) for n, c in enumerate(NAMES)}


def test_a_kept_field_that_changed_is_written_anew(trained, tmp_path, rows):
    """The picture and its words stayed as they were; what stands beside the vector did not."""
    for row, shelf in zip(rows, "abcdefgh", strict=True):
        row["shelf"], row["other"] = shelf, 1
    write(tmp_path / "rows.jsonl", rows)
    run(trained, tmp_path, fields=("shelf",))
    rows[2]["shelf"], rows[3]["shelf"], rows[4]["other"] = "z", None, 2
    write(tmp_path / "rows.jsonl", rows)
    for verify in (False, True):
        found = run(trained, tmp_path, fields=("shelf",), verify=verify)
        assert (found["written"], found["skipped"]) == ((2, 6) if not verify else (0, 8))
    shelves = dict(query(tmp_path / "out", "select id, shelf from vectors")["rows"])
    assert shelves == {**dict(zip(NAMES, "abcdefgh", strict=True)), "blue": "z", "red 2": None}
    stored = open_vectors(f"parquet:{tmp_path / 'out'}")
    assert stored.take(["blue"])[1][0]["shelf"] == "z"


def test_a_place_that_was_emptied_is_filled_again(trained, tmp_path, rows):
    run(trained, tmp_path)
    before = parts(tmp_path)
    shutil.rmtree(tmp_path / "out")
    assert run(trained, tmp_path)["written"] == 8
    assert parts(tmp_path) == before


def test_a_table_that_was_removed_is_filled_again(trained, tmp_path, rows):
    pytest.importorskip("lancedb")
    place = f"lance:{tmp_path / 'lance'}"
    run(trained, tmp_path, to=place)
    shutil.rmtree(tmp_path / "lance")
    assert run(trained, tmp_path, to=place)["written"] == 8
    assert sorted(open_vectors(place).ids()) == sorted(NAMES)


def test_a_shard_of_rejects_alone_is_no_damage(trained, tmp_path, rows):
    for name in NAMES[3:6]:
        (tmp_path / "images" / f"{name}.png").write_bytes(b"no picture")
    first = run(trained, tmp_path)
    assert (first["written"], first["rejected"], first["shards"]) == (5, 3, 3)
    again = run(trained, tmp_path, verify=True)
    assert (again["written"], again["shards"], again["skipped"]) == (0, 0, 8)


def test_rows_that_left_the_data_are_counted(trained, tmp_path, rows):
    assert run(trained, tmp_path)["not_in_data"] == 0
    write(tmp_path / "rows.jsonl", rows[:6])
    found = run(trained, tmp_path)
    assert (found["skipped"], found["not_in_data"]) == (6, 2)
    assert run(trained, tmp_path, limit=3)["not_in_data"] == 0  # not all were looked at


def test_a_new_picture_in_a_folder_is_seen(trained, tmp_path):
    folder = tmp_path / "data" / "deep"
    folder.mkdir(parents=True)
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(square(colour))
        (folder / f"{colour}.txt").write_text(colour)
    assert run(trained, tmp_path, "data")["written"] == 2
    (folder / "red.txt").write_text("crimson")
    os.utime(tmp_path / "data", (1, 1))
    found = run(trained, tmp_path, "data")
    assert (found["written"], found["skipped"]) == (1, 1)
    assert "crimson" in texts(tmp_path).values()


def test_what_changes_a_vector_but_no_weight_changes_the_fingerprint(tmp_path, tiny_dual):
    values = tiny_dual("clip")
    first = build(config_from_dict(values), seed=1)
    save_model(first, tmp_path / "first")
    mark = Embedder(load_model(tmp_path / "first"), EmbedConfig()).fingerprint
    other = json.loads(json.dumps(values))
    other["vision_encoder"]["config"]["num_attention_heads"] = 1
    second = build(config_from_dict(other), seed=1)
    second.load_state_dict(first.state_dict())
    save_model(second, tmp_path / "second")
    assert Embedder(load_model(tmp_path / "second"), EmbedConfig()).fingerprint != mark
    os.rename(tmp_path / "first", tmp_path / "moved")
    assert Embedder(load_model(tmp_path / "moved"), EmbedConfig()).fingerprint == mark


def test_sql_errors_say_what_there_is(trained, tmp_path, rows):
    run(trained, tmp_path)
    every = query(tmp_path / "out", "select * from vectors")
    assert len(every["rows"]) == 8 and "event_time" in every["columns"]
    with pytest.raises(ConfigError) as caught:
        query(tmp_path / "out", "select shelf from vectors")
    assert "--field NAME" in caught.value.fix and "id" in caught.value.fix
    with pytest.raises(ConfigError) as caught:
        query(tmp_path / "out", "select * from vector")
    assert "history, vectors" in caught.value.fix
    with pytest.raises(ConfigError):
        query(tmp_path / "out", "create table a (b int)", out=tmp_path / "a.csv")
    next(tmp_path.rglob("part-000001.parquet")).write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        query(tmp_path / "out", "select id from vectors")
