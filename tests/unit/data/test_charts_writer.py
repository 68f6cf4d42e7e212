"""The writer, against a real local HTTP server: the table has the last word."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diptych.errors import WriterError
from diptych.synthetic.charts import Writer, draw
from diptych.synthetic.charts.describe import describe
from diptych.synthetic.charts.table import Table
from diptych.synthetic.charts.topics import Scale

TABLE = Table(
    kind="bar", language="en", title="Rain", axis="City", unit="mm", categories=("Oslo", "Rome"),
    series=("Rain",), values=((10.0, 30.0),), scales=(Scale(5, 40),),
    ticks=((0.0, 10.0, 20.0, 30.0),), colours=("red",), colour_of="all",
    labelled=True, min_gap=(1.0,), order="any",
)  # fmt: skip


@contextmanager
def endpoint(reply):
    """A server whose `reply(prompt)` gives (status, body); yields its URL and the requests."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, data = reply(body["messages"][0]["content"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(content) -> tuple[int, bytes]:
    text = content if isinstance(content, str) else json.dumps(content)
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


GOOD = {"question": "How much rain has Rome?", "answer": "30",
        "operation": {"op": "value", "category": "Rome"}}  # fmt: skip


def ask(content) -> tuple[list, Counter]:
    discarded: Counter[str] = Counter()
    with endpoint(lambda prompt: says(content)) as (url, _):
        return Writer(url, "m").ask(TABLE, discarded), +discarded


def test_a_question_that_the_table_confirms_is_kept():
    kept, discarded = ask([GOOD])
    assert [(q.text, q.answer, q.kind) for q in kept] == [
        ("How much rain has Rome?", "30", "value")
    ]
    assert not discarded


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "answer": "31"}, "question_wrong_answer"),
        ({**GOOD, "question": "How much rain has Oslo?"}, "question_names_missing"),
        ({**GOOD, "operation": {"op": "value", "category": "Paris"}}, "question_unknown_name"),
        ({**GOOD, "operation": {"op": "eval"}}, "question_malformed"),
        ({**GOOD, "operation": "value"}, "question_malformed"),
        ({**GOOD, "question": 7}, "question_malformed"),
        ({**GOOD, "question": "<image> How much rain has Rome?"}, "question_malformed"),
        ({"question": "What is the trend?", "answer": "rising", "operation": {"op": "trend"}}, "question_not_visible"),
        ("a string", "question_malformed"),
    ],
)  # fmt: skip
def test_every_other_question_is_discarded_with_its_reason(row, reason):
    kept, discarded = ask([GOOD, row])
    assert len(kept) == 1 and discarded == {reason: 1}


@pytest.mark.parametrize("text", ["Sure! Here you are.", "[{]", "{}", "[" * 100_000])
def test_replies_that_are_no_list_are_counted(text):
    assert ask(text) == ([], Counter({"question_not_json": 1}))


def test_a_list_in_a_code_fence_is_read():
    assert len(ask("```json\n" + json.dumps([GOOD]) + "\n```")[0]) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A bar chart titled Rain: Oslo 10, Rome 30.", None),
        ("A bar chart titled Rain: Oslo 10, Rome 33.", "description_wrong_number"),
        ("A bar chart titled Rain: Oslo has 10 and so on.", "description_misses_category"),
        ("A bar chart titled Rain: Oslo 10, then Rome.", "description_misses_value"),
        ("No.", "description_malformed"),
    ],
)
def test_descriptions_are_held_to_the_table(text, reason):
    discarded: Counter[str] = Counter()
    with endpoint(lambda prompt: says(text)) as (url, _):
        found = Writer(url, "m").describe(TABLE, discarded)
    assert found == (None if reason else text)
    assert discarded == ({reason: 1} if reason else {})


def test_own_descriptions_pass_the_same_check():
    text = describe(random.Random(0), TABLE)
    with endpoint(lambda prompt: says(text)) as (url, _):
        assert Writer(url, "m").describe(TABLE, Counter()) == text


TOPIC = {
    "title": "Bees per garden", "measure": "Bees", "unit": "", "axis": "Garden",
    "categories": ["Hill", "Park", "Lake", "Yard", "Roof", "Field"], "low": 10, "high": 90,
    "decimals": 0, "suffix": "", "order": "any", "share": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"title": ""}, {"title": "x" * 99}, {"title": "Emoji 😀"}, {"categories": ["A"] * 6},
        {"categories": "ABCDEF"}, {"low": 90, "high": 10}, {"low": "ten"},
        {"low": True, "high": None}, {"decimals": 9}, {"suffix": "%", "high": 400},
        {"suffix": "xyz"}, {"order": "random"},
        {"categories": ["One", "Two", "Three", "Four", "Five", 6]}, {"high": float("inf")},
    ],
)  # fmt: skip
def test_bad_topics_are_discarded(change):
    discarded: Counter[str] = Counter()
    with endpoint(lambda prompt: says([TOPIC, {**TOPIC, **change}])) as (url, _):
        found = Writer(url, "m").topics("en", 10, discarded)
    assert [topic.titles for topic in found.topics] == [("Bees per garden",)]
    assert discarded["topic_malformed"] == 1


@pytest.mark.parametrize(
    "reply",
    [
        lambda prompt: (500, b"broken"),
        lambda prompt: (401, b"no"),
        lambda prompt: (200, b"<html>not json</html>"),
        lambda prompt: (200, b'{"choices": []}'),
        lambda prompt: (200, b'{"choices": [{"message": {"content": null}}]}'),
        lambda prompt: (200, b"x" * (2 << 20)),
    ],
)
def test_a_broken_endpoint_is_a_writer_error(reply):
    with endpoint(reply) as (url, seen), pytest.raises(WriterError) as caught:
        Writer(url, "m", num_retries=1).complete("hello")
    assert caught.value.where == f"{url}/v1/chat/completions"
    assert len(seen) == (2 if reply("")[0] == 500 else 1)


def test_nobody_listens():
    with pytest.raises(WriterError):
        Writer("http://127.0.0.1:9", "m", num_retries=0, timeout_seconds=2).complete("hello")


def test_an_address_that_is_none():
    with pytest.raises(WriterError):
        Writer("not a url", "m", num_retries=0).complete("hello")


def test_a_passing_failure_is_tried_again_and_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("DIPTYCH_WRITER_KEY", "secret")
    replies = iter([(503, b""), says("fine")])
    with endpoint(lambda prompt: next(replies)) as (url, seen):
        assert Writer(url + "/v1", "m").complete("hello") == "fine"
    assert [request["key"] for request in seen] == ["Bearer secret"] * 2
    assert seen[0]["path"] == "/v1/chat/completions" and seen[0]["model"] == "m"


def test_a_whole_set_with_a_writer(tmp_path):
    """Topics are used, wrong questions discarded and counted, everything else is as without."""

    def reply(prompt: str) -> tuple[int, bytes]:
        if prompt.startswith("Invent"):
            return says([TOPIC, {**TOPIC, "title": "Wasps", "low": -1}])
        if prompt.startswith("Describe"):
            return says("I would rather not say.")
        return says(
            [
                {"question": "Kind?!", "answer": "spiral", "operation": {"op": "chart_type"}},
                {"question": "How many are drawn here?", "answer": "1000",
                 "operation": {"op": "count", "of": "categories"}},
            ]
        )  # fmt: skip

    with endpoint(reply) as (url, _):
        summary = draw(
            tmp_path / "set", num=20, languages=("en",), workers=2, writer=Writer(url, "tiny")
        )
    assert summary["topics_written"] == {"en": 1}
    assert summary["discarded"]["topic_malformed"] == 1
    assert summary["discarded"]["question_wrong_answer"] == 40
    assert sum(n for why, n in summary["discarded"].items() if why.startswith("description")) == 20
    titles = {
        json.loads(path.read_text(encoding="utf-8"))["title"]
        for path in (tmp_path / "set" / "tables").iterdir()
    }
    assert "Bees per garden" in titles and len(titles) > 3
    assert summary["settings"]["writer"] == {"url": url, "model": "tiny"}
    assert "secret" not in (tmp_path / "set" / "charts.json").read_text()
