"""Rows and pictures from folders, shards and URLs."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from pathlib import Path

import pytest

from diptych.data.checking.index import Index
from diptych.data.reading.rows import Reject
from diptych.data.sample import Image, Sample
from diptych.data.source import is_pictures_alone, locate, read_bytes, rows
from diptych.errors import (
    DataError,
    EmptyImage,
    FormatError,
    ImageTooLarge,
    MissingImage,
    NotAnImage,
    UnsafePath,
)
from diptych.train.stage import DataConfig
from tests.e2e.faulty_inputs import (
    folder_with_picture,
    json_lines,
    parquet,
    png,
    row,
    symlink_out,
    talk,
    tar,
)


def good(path, **options) -> list[Sample]:
    items = list(rows(path, **options))
    assert not any(isinstance(item, Reject) for item in items), items
    return [item for item in items if isinstance(item, Sample)]


def fill(folder: Path) -> Path:
    """One data set in every layout."""
    folder_with_picture(folder)
    json_lines(folder, [row(n) for n in range(3)])
    members = [
        (f"{n}.{kind}", data) for n in range(3) for kind, data in (("txt", b"A"), ("png", png()))
    ]
    tar(folder, members)
    pictures = [{"bytes": png(), "path": f"{n}.png"} for n in range(3)]
    parquet(folder, {"image": pictures, "conversations": [talk("<image>?", "A")] * 3})
    return folder


@pytest.mark.parametrize("name", ["data.jsonl", "shard.tar", "rows.parquet"])
def test_local_files(tmp_path, name):
    path = str(fill(tmp_path) / name)
    source = locate(path)
    samples = list(source.rows())
    assert len(samples) == 3
    for sample in samples:
        for image in sample.images():
            assert read_bytes(image, source.root) == png()


def test_tar_pictures_know_their_place(tmp_path):
    path = str(fill(tmp_path) / "shard.tar")
    image = next(good(path)[1].images())
    assert read_bytes(Image(image.path, None, image.span), None) == png()


def test_compressed_tar(tmp_path):
    import gzip

    path = tmp_path / "shard.tar.gz"
    path.write_bytes(gzip.compress((fill(tmp_path) / "shard.tar").read_bytes()))
    assert [next(s.images()).span for s in good(str(path))] == [None] * 3
    index = Index.build(str(path), tmp_path / "cache", progress=False)
    assert [index.image_bytes(next(s.images())) for s in index] == [png()] * 3


def test_globs_lists_and_folders_of_shards(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        tar(shards, [("0.txt", b"A"), ("0.png", png())], f"{number:03d}.tar")
    for path in (str(shards), str(shards / "*.tar"), [str(p) for p in sorted(shards.iterdir())]):
        assert [s.id for s in good(path)] == ["000/0", "001/0"]
    for number in range(2):
        json_lines(tmp_path, [{"caption": "A", "image": "a.png"}], f"{number}.jsonl")
    assert len({s.id for s in good(str(tmp_path / "?.jsonl"))}) == 2


def test_folder_with_one_data_file(tmp_path):
    folder_with_picture(tmp_path)
    json_lines(tmp_path, [row(1)])
    assert locate(str(tmp_path)).paths == (str(tmp_path / "data.jsonl"),)


def test_several_pictures_in_a_tar_row_keep_their_order(tmp_path):
    conversation = json.dumps({"conversations": talk("<image> and <image>?", "A")}).encode()
    members = [("a.json", conversation), ("a.0.png", png(1, 1)), ("a.1.png", png(2, 2))]
    images = list(good(str(tar(tmp_path, members)))[0].images())
    assert [image.data for image in images] == [png(1, 1), png(2, 2)]
    named = json.dumps({"image": ["a.1.png", "a.0.png"]} | json.loads(conversation)).encode()
    members[0] = ("a.json", named)
    images = list(good(str(tar(tmp_path, members)))[0].images())
    assert [image.data for image in images] == [png(2, 2), png(1, 1)]


def test_parquet_messages_with_placeholders(tmp_path):
    content = [
        [{"type": "image", "text": None}, {"type": "text", "text": "?"}],
        [{"type": "text", "text": "A"}],
    ]
    messages = [
        {"role": role, "content": parts}
        for role, parts in zip(("user", "assistant"), content, strict=True)
    ]
    path = parquet(tmp_path, {"images": [[png()]], "messages": [messages]})
    (sample,) = good(str(path))
    assert next(sample.images()).data == png() and sample.answer == "A"


@pytest.fixture(scope="module")
def s3():
    """A real S3 endpoint on this machine."""
    from moto.server import ThreadedMotoServer

    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        file_system = s3fs.S3FileSystem()
        file_system.mkdir("bucket")
        yield file_system
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_object_store(tmp_path, s3):
    fill(tmp_path)
    s3.put(f"{tmp_path}/", "bucket/set/", recursive=True)
    for name in ("data.jsonl", "shard.tar", "rows.parquet"):
        path = f"s3://bucket/set/{name}"
        index = Index.build(path, tmp_path / "cache", progress=False)
        assert len(index) == 3, index.ledger
        assert [index.image_bytes(i) for s in index for i in s.images()] == [png()] * 3
    assert len(good("s3://bucket/set/*.tar")) == 3
    with pytest.raises(MissingImage):
        read_bytes(Image("gone.png"), "s3://bucket/set")
    with pytest.raises(UnsafePath):
        read_bytes(Image("../other/a.png"), "s3://bucket/set")
    with pytest.raises(DataError):
        list(rows("s3://bucket/set/gone.jsonl"))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def web(tmp_path):
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_web_server_without_ranges(tmp_path, web):
    fill(tmp_path)
    for name in ("data.jsonl", "shard.tar", "rows.parquet"):
        samples = good(f"{web}/{name}")
        assert len(samples) == 3
    image = next(good(f"{web}/data.jsonl")[0].images())
    assert read_bytes(image, web) == png()
    with pytest.raises(DataError) as error:
        list(rows(f"{web}/gone.jsonl"))
    assert "gone.jsonl" in str(error.value)
    with pytest.raises(MissingImage):
        read_bytes(Image("gone.png"), web)


def test_rows_cannot_reach_a_server(tmp_path, web):
    """A row with an address is refused without a single request."""
    hits = []
    _Quiet.do_GET, original = lambda self: hits.append(self.path), _Quiet.do_GET
    try:
        for address in (f"{web}/a.png", web.replace("127.0.0.1", "2130706433") + "/a.png"):
            with pytest.raises(UnsafePath, match="http"):
                read_bytes(Image(address), str(tmp_path))
    finally:
        _Quiet.do_GET = original
    assert not hits


def test_the_image_folder_is_a_fence(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    folder_with_picture(root)
    symlink_out(root)
    (root / "empty.png").write_bytes(b"")
    (root / "sub").mkdir()
    os.symlink(root / "good.png", root / "sub" / "inside.png")
    assert read_bytes(Image("good.png"), str(root)) == png()
    assert read_bytes(Image("sub/inside.png"), str(root)) == png()
    cases = {
        "../root/good.png": UnsafePath,
        str(root / "good.png"): UnsafePath,
        "link.png": UnsafePath,
        "linked/secret.png": UnsafePath,
        "nul\0.png": UnsafePath,
        "gone.png": MissingImage,
        "sub": NotAnImage,
        "": NotAnImage,
        "empty.png": EmptyImage,
    }
    for path, error in cases.items():
        with pytest.raises(error):
            read_bytes(Image(path), str(root))
    with pytest.raises(ImageTooLarge):
        read_bytes(Image("good.png"), str(root), max_bytes=10)
    with pytest.raises(ImageTooLarge):
        read_bytes(Image("x", png()), None, max_bytes=10)
    with pytest.raises(MissingImage):
        read_bytes(Image("good.png"), None)


def test_pictures_alone(tmp_path):
    for name in ("a.png", "deeper/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert is_pictures_alone(str(tmp_path))
    assert [sample.id for sample in good(str(tmp_path), format="pictures")] == [
        "a.png",
        "deeper/b.jpg",
    ]
    (tmp_path / "deeper/b.txt").write_text("a caption")
    assert not is_pictures_alone(str(tmp_path))
    json_lines(tmp_path, [{"id": "7", "image": "a.png", "note": 1}, {"caption": "forgotten"}])
    assert not is_pictures_alone(str(tmp_path))
    first, second = rows(str(tmp_path / "data.jsonl"), format="pictures")
    assert (first.id, first.meta, first.answer) == ("7", {"note": 1}, "")
    assert isinstance(second, Reject) and "no 'image'" in second.message
    with pytest.raises(ValueError, match="nothing to learn"):
        DataConfig(path=str(tmp_path), format="pictures")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"captoin,img\na,b.png\n", "they have the fields captoin, img"),
        ("a.csv", "caption,image\n你好,b.png\n".encode("gbk"), "a.csv:2: the row is not UTF-8"),
        ("a.json", b"[]", "there are none"),
    ],
)
def test_a_format_that_cannot_be_told_says_what_was_seen(name, data, says, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=says):
        list(rows(str(tmp_path / name)))


def test_an_image_folder_that_is_not_there_is_said_once(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": "A."}\n')
    with pytest.raises(DataError, match="no such image folder") as caught:
        locate(str(tmp_path / "rows.jsonl"), images=str(tmp_path / "fotos"))
    assert "fotos" in str(caught.value)
