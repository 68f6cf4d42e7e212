"""A Ray cluster: Ray Data spreads shards over model replicas, the driver writes what comes back.

Pictures and the model's folder must be readable on every node. A replica or a node that dies costs
time only: Ray Data gives its shards to another. The cluster is the one that `RAY_ADDRESS` names,
else one on this machine.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diptych.data.collate import Item
from diptych.data.sample import Image
from diptych.embed.embedder import EmbedConfig, Embedder
from diptych.embed.engine import Pending, Work, batches
from diptych.errors import ConfigError, MissingExtra
from diptych.model.checkpoint import load_model

CPUS_EACH = 2
"""Cores of a replica on machines without a GPU."""


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
    # Shards are hours apart in the worst case; a node that dies must never end the job.
    context.max_errored_blocks = 0
    items = [{"shard": pickle.dumps((shard, samples))} for shard, samples in work.shards]
    if not items:
        return
    import torch

    each, number = _replicas(ray, work.workers)
    found = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Replica,  # type: ignore[arg-type]
        fn_constructor_kwargs={
            "source": work.embedder.source,
            "settings": work.embedder.config.to_dict(),
            "fingerprint": work.embedder.fingerprint,
            "read": work.read,
            "fields": work.fields,
            # The same number of threads everywhere, so that sums are taken in the same order.
            "threads": torch.get_num_threads(),
        },
        concurrency=(1, max(1, min(number, len(items)))),
        max_restarts=-1,
        max_task_retries=-1,
        **each,
    )
    done: set[int] = set()
    for row in found.iter_rows():
        shard: Pending = pickle.loads(row["shard"])  # made by our own replicas
        if shard.number not in done:
            done.add(shard.number)
            work.step(len(shard.identities))
            yield shard


def _replicas(ray: Any, wanted: int | None) -> tuple[dict[str, Any], int]:
    """(resources of one replica, how many there is room for)."""
    there = ray.cluster_resources()
    if gpus := int(there.get("GPU", 0)):
        return {"num_gpus": 1}, wanted or gpus
    cpus = min([CPUS_EACH, *(int(n["Resources"].get("CPU", 0)) or CPUS_EACH for n in ray.nodes())])
    return {"num_cpus": cpus}, wanted or max(1, int(there.get("CPU", 1)) // cpus)


class Replica:
    """A model on one node.

    Raises:
        ConfigError: the folder holds another model there.
    """

    def __init__(
        self,
        source: str,
        settings: dict[str, Any],
        fingerprint: str,
        read: Callable[[Image], bytes],
        fields: tuple[str, ...],
        threads: int,
    ):
        import torch

        torch.set_num_threads(threads)
        self.embedder = Embedder(load_model(Path(source)), EmbedConfig.from_dict(settings), source)
        if self.embedder.fingerprint != fingerprint:
            raise ConfigError("another model lies there on this node", where=source)
        if torch.cuda.is_available():
            self.embedder.model.to("cuda")
        self.read = read
        self.fields = fields

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A shard without vectors -> the same with them."""
        shard, samples = pickle.loads(row["shard"])  # made by our own driver
        for part in batches(self.embedder, samples):
            prepared = self.embedder.prepare([Item(sample, self.read) for sample in part])
            shard.add(self.embedder, part, prepared, self.fields)
        return {"shard": pickle.dumps(shard)}
