"""Vectors into SageMaker Feature Store, against a local endpoint that enforces the documented limits.

The service itself cannot run here. The endpoint speaks its protocol to the real boto3 and refuses
what the service's documentation says that it refuses; it also leaves records unprocessed at random.
"""

from __future__ import annotations

import http.server
import json
import random
import re
import threading

import numpy as np
import pytest

from diptych.embed.sink import About, Shard, open_sink
from diptych.embed.vectors import Vectors
from diptych.errors import ConfigError, SinkAway

pytest.importorskip("boto3")
NAME = re.compile(r"[a-zA-Z0-9]([-_]*[a-zA-Z0-9]){0,63}$")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$")
WHEN = 1_700_000_000_123_456_789


class Service(http.server.ThreadingHTTPServer):
    """Feature groups in memory."""

    def __init__(self, dim=7, collection=True):
        vector = {"FeatureName": "vector", "FeatureType": "Fractional", "CollectionType": "Vector",
                  "CollectionConfig": {"VectorConfig": {"Dimension": dim}}}  # fmt: skip
        if not collection:
            vector = {"FeatureName": "vector", "FeatureType": "String"}
        names = ("id", "event_time", "data", "image", "text", "shelf")
        self.features = [{"FeatureName": n, "FeatureType": "String"} for n in names] + [vector]
        self.records, self.requests = {}, 0
        self.unprocessed, self.failures, self.down = 0.0, 0.0, False
        self.rng = random.Random(0)
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def target(self):
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return f"sagemaker:pictures?region=eu-west-1&endpoint={url}"

    def put(self, record):
        """What the service checks of a record; the fault, or None."""
        values = {}
        for value in record:
            name = value["FeatureName"]
            known = next((f for f in self.features if f["FeatureName"] == name), None)
            if known is None or not NAME.match(name) or name in ("is_deleted", "write_time"):
                return f"feature {name} is not defined"
            is_list = "ValueAsStringList" in value
            if is_list != (known.get("CollectionType") is not None):
                return f"feature {name} has the wrong kind of value"
            if is_list:
                dim = known["CollectionConfig"]["VectorConfig"]["Dimension"]
                if len(value["ValueAsStringList"]) != dim or dim > 8192:
                    return f"feature {name} has {len(value['ValueAsStringList'])} dimensions"
                [float(v) for v in value["ValueAsStringList"]]
            elif not value["ValueAsString"]:
                return f"feature {name} is empty"
            if name in values:
                return f"feature {name} stands twice"
            values[name] = value.get("ValueAsStringList", value.get("ValueAsString"))
        if len(json.dumps(record)) > 350 * 1024 + 100 * len(record):
            return "the record is larger than 350 KB"
        if len(values.get("id", "").encode()) not in range(1, 2049):
            return "the record identifier has no valid length"
        if not ISO.match(values.get("event_time", "")):
            return "the event time is not ISO 8601"
        old = self.records.get(values["id"])
        if old is None or old["event_time"] <= values["event_time"]:
            self.records[values["id"]] = values
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        service: Service = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.requests += 1
        if service.down:
            return self.answer(503, {"message": "away"}, "ServiceUnavailable")
        if self.headers.get("X-Amz-Target") == "SageMaker.DescribeFeatureGroup":
            if body["FeatureGroupName"] != "pictures":
                return self.answer(400, {"__type": "ResourceNotFound", "message": "no such group"})
            return self.answer(200, {
                "FeatureGroupArn": "arn", "FeatureGroupName": "pictures", "CreationTime": 0,
                "RecordIdentifierFeatureName": "id", "EventTimeFeatureName": "event_time",
                "FeatureDefinitions": service.features,
            })  # fmt: skip
        assert self.path == "/BatchWriteRecord"
        entries = body["Entries"]
        if not 1 <= len(entries) <= 25:
            return self.answer(400, {"message": "1 to 25 entries"}, "ValidationError")
        errors, left = [], []
        for entry in entries:
            if service.rng.random() < service.unprocessed:
                left.append(entry)
            elif service.rng.random() < service.failures:
                errors.append(
                    {"Entry": entry, "ErrorCode": "InternalFailure", "ErrorMessage": "busy"}
                )
            elif fault := service.put(entry["Record"]):
                errors.append(
                    {"Entry": entry, "ErrorCode": "ValidationError", "ErrorMessage": fault}
                )
        return self.answer(200, {"Errors": errors, "UnprocessedEntries": left})

    def answer(self, status, body, kind=None):
        data = json.dumps(body).encode()
        self.send_response(status)
        if kind:
            self.send_header("x-amzn-ErrorType", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def service():
    running = Service()
    yield running
    running.shutdown()
    running.server_close()


def about(**more):
    return About("0123456789ab", "image", "float32", ("shelf",), **more)


def shard(values, keys=None, when=WHEN, **row):
    keys = keys or [f"item {n}" for n in range(len(values))]
    rows = [{"image": f"{k}.png", "text": None, "shelf": 3, **row} for k in keys]
    return Shard(0, keys, Vectors(np.asarray(values, np.float32)), rows, when)


def awkward(n, dim):
    """Numbers of every size, zeros of both signs among them."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n, dim)) * 10.0 ** rng.integers(-30, 30, (n, dim))
    values[0, :2] = (0.0, -0.0)
    return values.astype(np.float32)


def test_numbers_come_back_bit_by_bit(service):
    values = awkward(60, 7)
    sink = open_sink(service.target, about(data="set"))
    sink.write(shard(values))
    assert len(service.records) == 60 and service.requests == 1 + 3
    for n in range(60):
        found = service.records[f"item {n}"]
        back = np.array([np.float32(v) for v in found["vector"]], np.float32)
        assert back.tobytes() == values[n].tobytes()
        assert found["event_time"] == "2023-11-14T22:13:20.123456789Z"
        assert found["shelf"] == "3" and found["data"] == "set" and "text" not in found
    sink.close()


def test_one_string_where_the_group_has_no_collections():
    service = Service(collection=False)
    values = awkward(3, 9)
    open_sink(service.target, about()).write(shard(values))
    back = np.array([np.float32(v) for v in service.records["item 2"]["vector"].split(",")])
    assert back.astype(np.float32).tobytes() == values[2].tobytes()
    service.shutdown()


@pytest.mark.slow
def test_what_is_left_unprocessed_is_sent_again(service):
    service.unprocessed, service.failures = 0.4, 0.2
    sink = open_sink(service.target, about())
    sink.write(shard(awkward(120, 7)))
    assert len(service.records) == 120
    service.unprocessed = 1.0
    with pytest.raises(SinkAway, match="unprocessed"):
        sink.write(shard(awkward(1, 7)))


def test_an_older_write_does_not_win_and_the_same_one_changes_nothing(service):
    sink = open_sink(service.target, about())
    sink.write(shard(np.full((1, 7), 2.0), when=WHEN + 1))
    sink.write(shard(np.full((1, 7), 1.0), when=WHEN))
    assert service.records["item 0"]["vector"][0] == "2.0"


def test_what_the_service_would_refuse_is_named_before_it_is_sent(service):
    sink = open_sink(service.target, about())
    sent = service.requests
    with pytest.raises(ConfigError, match="7 dimensions, these 8"):
        sink.write(shard(np.zeros((1, 8))))
    with pytest.raises(ConfigError, match="1 to 8192"):
        sink.write(shard(np.zeros((1, 8193))))
    with pytest.raises(ConfigError, match="1 to 8192"):
        sink.write(Shard(0, ["a"], Vectors(np.zeros((1, 3, 7), np.float32)), [{}], WHEN))
    (long,) = sink.write(shard(np.zeros((1, 7)), keys=["x" * 2049]))
    (large,) = sink.write(shard(np.zeros((1, 7)), text="a" * 400_000))
    assert "2048 bytes" in long["message"] and "358400 are allowed" in large["message"]
    assert service.requests == sent
    assert sink.write(shard(np.zeros((1, 7)), text="")) == []
    with pytest.raises(ConfigError, match="no feature 'colour'"):
        open_sink(service.target, About("0123456789ab", "image", "float32", ("colour",)))
    with pytest.raises(ConfigError, match="no such group"):
        open_sink(service.target.replace("pictures", "others"), about())


def test_a_service_that_is_away_is_named_as_such(service):
    sink = open_sink(service.target, about())
    service.down = True
    with pytest.raises(SinkAway, match="ServiceUnavailable"):
        sink.write(shard(np.zeros((1, 7))))
    service.down = False
    sink.write(shard(np.zeros((1, 7))))
    assert len(service.records) == 1
