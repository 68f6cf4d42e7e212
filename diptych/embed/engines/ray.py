"""A Ray cluster: Ray Data spreads shards over model replicas, the driver writes what comes back.

Pictures and the model's folder must be readable on every node. A worker or a node that dies costs
time only: Ray gives its shards to another. The cluster is the one that `RAY_ADDRESS` names,
else one on this machine.
"""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from diptych.data.batching.picture_loader import Item
from diptych.data.sample import Image
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.engine import Pending, Work, batches, vectors_of
from diptych.embed.pace import usual
from diptych.errors import ConfigError, DiptychError, MissingExtra
from diptych.model.opened import open_model

SHARDS_EACH = 16
"""Shards of one wave for each replica."""


def compute(work: Work) -> Iterator[Pending]:
    """See `diptych.embed.engine`; shards come as they are ready.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: the model has no folder that other nodes could load it from.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("a cluster needs Ray", fix="pip install 'diptych[ray]'") from None
    if not work.embedder.source:
        raise ConfigError("the model must lie in a folder that every node can read")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    each, most = _resources(ray, work.workers)
    replica = Replica(
        work.embedder.source, json.dumps(work.embedder.config.to_dict()), work.embedder.fingerprint,
        usual().threads,
    )  # fmt: skip
    fill = _Fill(replica, work.read, work.fields)
    items = ({"shard": pickle.dumps((shard, samples))} for shard, samples in work.shards)
    done: set[int] = set()
    # In waves, so that the driver never holds all rows.
    while wave := list(itertools.islice(items, SHARDS_EACH * most)):
        # Tasks, not actors: what an actor of a dead node had begun waits until that very actor
        # finds room again, while a task goes to any node at once. The model stays loaded.
        found = ray.data.from_items(wave, override_num_blocks=len(wave)).map(
            fill.__call__,
            compute=ray.data.TaskPoolStrategy(size=max(1, min(most, len(wave)))),
            max_calls=0,
            max_retries=-1,
            **each,
        )
        for row in found.iter_rows():
            shard = pickle.loads(row["shard"])  # made by our own nodes
            if isinstance(shard, DiptychError):
                raise shard
            if shard.number not in done:
                done.add(shard.number)
                work.step(len(shard.identities))
                yield shard


def _resources(ray: Any, wanted: int | None) -> tuple[dict[str, Any], int]:
    """(resources of one replica, how many there is room for)."""
    there = ray.cluster_resources()
    if gpus := int(there.get("GPU", 0)):
        return {"num_gpus": 1}, wanted or gpus
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # A replica decodes, too: one with all cores of a node would let them wait meanwhile.
    cpus = min([usual().threads, *filter(None, nodes)])
    return {"num_cpus": cpus}, wanted or max(1, int(there.get("CPU", 1)) // cpus)


@dataclass(frozen=True)
class Replica:
    """Which model a node loads, and how it computes."""

    source: str
    settings: str
    fingerprint: str
    threads: int


@lru_cache(maxsize=1)
def loaded(replica: Replica) -> Embedder:
    """The embedder of this process, loaded once.

    Raises:
        ConfigError: the folder holds another model on this node.
    """
    import torch

    torch.set_num_threads(replica.threads)
    settings = EmbedConfig.from_dict(json.loads(replica.settings))
    embedder = Embedder(open_model(replica.source), settings, replica.source)
    if embedder.fingerprint != replica.fingerprint:
        raise ConfigError("another model lies there on this node", where=replica.source)
    return embedder


@dataclass(frozen=True)
class _Fill:
    """A shard without vectors -> the same with them."""

    replica: Replica
    read: Callable[[Image], bytes]
    fields: tuple[str, ...]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"shard": pickle.dumps(self._filled(row["shard"]))}
        except DiptychError as error:
            # Raised, it would reach the driver as text inside an error of Ray's.
            return {"shard": pickle.dumps(error)}

    def _filled(self, data: bytes) -> Pending:
        embedder = loaded(self.replica)
        shard: Pending
        shard, samples = pickle.loads(data)  # made by our own driver
        for part in batches(samples, embedder.config.batch_size):
            found = vectors_of(embedder, [Item(sample, self.read) for sample in part])
            shard.add(part, *found, self.fields)
        return shard
