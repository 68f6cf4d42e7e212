"""SageMaker Feature Store: one feature group a kind of vector.

`sagemaker:GROUP[?region=R&endpoint=URL]`; access as boto3 finds it. The group must exist: its
record identifier is `id`, its event time `event_time` (a string), its vector `vector` (a collection
in the in-memory tier, or one string). A record is checked against the service's limits before it is
sent; what the service leaves unprocessed is sent again.

Limits, from the service's documentation (quotas, collection types, BatchWriteRecord): one vector of
1 to 8,192 dimensions a group; 350 KB a record; 2 KB an identifier; 25 records a request. Values
travel as text: the shortest that reads back as the same float32.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from diptych.embed.sink import About, Shard, as_text
from diptych.errors import ConfigError, DataError, MissingExtra, SinkAway

log = logging.getLogger(__name__)
MAX_DIM = 8192
MAX_RECORD_BYTES = 350 * 1024
MAX_ID_BYTES = 2048
BATCH = 25
ATTEMPTS = 8
RETRIED = ("ThrottlingException", "InternalFailure", "ServiceUnavailable")
"""Errors that may be gone the next time."""
RESERVED = ("is_deleted", "write_time", "api_invocation_time")


def open(target: str, about: About) -> FeatureGroup:
    """`sagemaker:GROUP`, with `?region=R` and `?endpoint=URL` where they are not the usual ones.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: there is no such group, or it has no place for the vector.
        SinkAway: the service does not answer.
    """
    try:
        import boto3
    except ImportError:
        raise MissingExtra(
            "SageMaker needs boto3", fix="pip install 'diptych[sagemaker]'"
        ) from None
    from botocore.config import Config

    group, _, query = target.partition(":")[2].partition("?")
    settings = dict(parse_qsl(query))
    if unknown := set(settings) - {"region", "endpoint"}:
        raise ConfigError(
            f"'{min(unknown)}' is no setting of a feature group", fix="region=R or endpoint=URL"
        )
    # Retries are this module's: it knows which records of a batch are left.
    shared = {
        "region_name": settings.get("region"),
        "endpoint_url": settings.get("endpoint"),
        "config": Config(retries={"max_attempts": 2, "mode": "standard"}, read_timeout=30),
    }
    with errors_named(group):
        described = boto3.client("sagemaker", **shared).describe_feature_group(
            FeatureGroupName=group
        )
        runtime = boto3.client("sagemaker-featurestore-runtime", **shared)
    return FeatureGroup(runtime, group, about, described)


class FeatureGroup:
    """One feature group."""

    def __init__(self, client: Any, group: str, about: About, described: dict[str, Any]):
        self.client = client
        self.group = group
        self.about = about
        self.features = {f["FeatureName"]: f for f in described["FeatureDefinitions"]}
        for kind, wanted in (("RecordIdentifier", "id"), ("EventTime", "event_time")):
            if described[f"{kind}FeatureName"] != wanted:
                raise ConfigError(
                    f"its {kind} is '{described[f'{kind}FeatureName']}', not '{wanted}'",
                    where=f"feature group {group}",
                    fix="make a group for these vectors (docs/embed.md has its definition)",
                )
        names = [*about.fields, "image", "text", "data"]
        missing = [n for n in ("vector", *about.fields) if n not in self.features]
        if missing or set(names) & set(RESERVED):
            raise ConfigError(
                f"it has no feature '{missing[0]}'" if missing else "a field's name is reserved",
                where=f"feature group {group}",
                fix="add it to the group, or keep other fields",
            )
        vector = self.features["vector"]
        self.is_collection = vector.get("CollectionType") == "Vector"
        self.dim = vector.get("CollectionConfig", {}).get("VectorConfig", {}).get("Dimension")

    def write(self, shard: Shard) -> list[dict[str, Any]]:
        """See `Sink`. PutRecord overwrites a record whole, so writing again changes nothing.

        Records that are too large, or that the service refuses, are returned as rejects.

        Raises:
            ConfigError: the vectors are matrices, too wide, or not of the group's dimension.
        """
        vectors = shard.numbers()
        if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MAX_DIM:
            raise ConfigError(
                f"a vector has 1 to {MAX_DIM} dimensions here, these are {vectors.shape[1:]}",
                where=f"feature group {self.group}",
                fix="pool to one vector",
            )
        if self.dim not in (None, vectors.shape[1]):
            raise ConfigError(
                f"the group's vectors have {self.dim} dimensions, these {vectors.shape[1]}",
                where=f"feature group {self.group}",
            )
        when = iso_time(shard.event_time_ns)
        records, refused = [], []
        for key, vector, row in zip(shard.keys, vectors, shard.rows, strict=True):
            try:
                records.append(self._record(key, when, vector, row))
            except DataError as error:
                refused.append({"id": key, **error.to_dict()})
        for start in range(0, len(records), BATCH):
            refused += self._send(records[start : start + BATCH])
        return refused

    def _record(
        self, key: str, when: str, vector: np.ndarray, row: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if not 1 <= len(key.encode()) <= MAX_ID_BYTES:
            raise DataError(f"an id has 1 to {MAX_ID_BYTES} bytes here", where=key[:80])
        # NumPy writes the shortest text that reads back as the same float32.
        numbers = [str(value) for value in vector]
        values: list[dict[str, Any]] = [
            {"FeatureName": "id", "ValueAsString": key},
            {"FeatureName": "event_time", "ValueAsString": when},
            {"FeatureName": "vector", "ValueAsStringList": numbers}
            if self.is_collection
            else {"FeatureName": "vector", "ValueAsString": ",".join(numbers)},
        ]
        rest = {"data": self.about.data, **row}
        for name in ("data", "image", "text", *self.about.fields):
            # There are no nulls and no empty texts: they are left out.
            if name in self.features and (value := as_text(rest.get(name))):
                values.append({"FeatureName": name, "ValueAsString": value})
        size = sum(len(v["FeatureName"]) + sum(map(len, map(str.encode, texts(v)))) for v in values)
        if size > MAX_RECORD_BYTES:
            raise DataError(
                f"the record has {size} bytes, {MAX_RECORD_BYTES} are allowed",
                where=key,
                fix="keep fewer or shorter fields",
            )
        return values

    def _send(self, records: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Send up to 25 records until none is left; given up when ATTEMPTS bring none further.

        Returns:
            Those that the service refused, as rejects.
        """
        refused: list[dict[str, Any]] = []
        entries = [{"FeatureGroupName": self.group, "Record": record} for record in records]
        attempt = 0
        while attempt < ATTEMPTS:
            with errors_named(self.group):
                answer = self.client.batch_write_record(Entries=entries)
            again = list(answer.get("UnprocessedEntries", []))
            for error in answer.get("Errors", []):
                if error["ErrorCode"] in RETRIED:
                    again.append(error["Entry"])
                    continue
                reason = DataError(
                    f"the service refused the record: {error['ErrorMessage']}",
                    where=f"feature group {self.group}",
                )
                key = error["Entry"]["Record"][0]["ValueAsString"]
                refused.append({"id": key, **reason.to_dict()})
            if not again:
                return refused
            attempt = 0 if len(again) < len(entries) else attempt + 1
            entries = again
            # Jitter, so that several writers do not come back at the same moment.
            time.sleep(min(5.0, 0.05 * 2**attempt) * (0.5 + random.random()))
        raise SinkAway(
            f"{len(entries)} records were left unprocessed {ATTEMPTS} times",
            where=f"feature group {self.group}",
        )

    def intact(self, number: int) -> bool:
        """The service keeps no shards."""
        return True

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()


def texts(value: dict[str, Any]) -> Sequence[str]:
    return value.get("ValueAsStringList") or [value.get("ValueAsString", "")]


def iso_time(nanoseconds: int) -> str:
    """ISO 8601 in UTC with nanoseconds, as the service takes it."""
    whole = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{nanoseconds % 10**9:09d}Z"


class errors_named:
    """Turns boto3's errors into Diptych's."""

    def __init__(self, group: str):
        self.where = f"feature group {group}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from botocore import exceptions as known

        if isinstance(error, known.ClientError):
            code = error.response["Error"]["Code"]
            if code in RETRIED:
                raise SinkAway(
                    f"the service does not answer now: {code}", where=self.where
                ) from error
            raise ConfigError(f"the service refused: {error}", where=self.where) from error
        if isinstance(error, known.NoCredentialsError | known.NoRegionError):
            raise ConfigError(
                str(error), where=self.where, fix="set AWS credentials and region"
            ) from error
        if isinstance(error, known.BotoCoreError):
            raise SinkAway(f"the service does not answer: {error}", where=self.where) from error
