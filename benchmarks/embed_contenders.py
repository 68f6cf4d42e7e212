"""One contender of embed_throughput.py, in a process of its own.

    python embed_contenders.py NAME SETTINGS.json OUT.json

notebook, dataloader and sentence_transformers use only torch, transformers, Pillow and NumPy (and
the package of that name), so that they run in an environment without Diptych.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

PERSON = "a picture of something"


def notebook(s: dict[str, Any]) -> dict[str, Any]:
    """One picture at a time: open, processor, model, keep; at the end everything into one file."""
    from PIL import Image

    model, processor = hf_model(s)
    files, kept = s["files"], []
    start = time.perf_counter()
    for file in files:
        image = Image.open(file).convert("RGB")
        with torch.no_grad():
            kept.append(forward(s, model, processor, [image]).cpu().numpy())
    np.save(s["out"] + ".npy", np.concatenate(kept))
    return {"seconds": time.perf_counter() - start}


def dataloader(s: dict[str, Any]) -> dict[str, Any]:
    """A plain DataLoader that opens and processes pictures in worker processes, batches of 32."""
    from PIL import Image

    model, processor = hf_model(s)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(s["files"])

        def __getitem__(self, n: int) -> torch.Tensor:
            image = Image.open(s["files"][n]).convert("RGB")
            return processor(images=image, return_tensors="pt")["pixel_values"][0]

    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=s["batch_size"], num_workers=s["workers"]
    )
    kept = []
    start = time.perf_counter()
    with torch.inference_mode():
        for pixels in loader:
            kept.append(forward(s, model, processor, None, pixels).cpu().numpy())
    np.save(s["out"] + ".npy", np.concatenate(kept))
    return {"seconds": time.perf_counter() - start}


def sentence_transformers(s: dict[str, Any]) -> dict[str, Any]:
    """`SentenceTransformer.encode` with its CLIP module."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer, models

    model = SentenceTransformer(modules=[models.CLIPModel(s["hf"])], device=s["device"])
    start = time.perf_counter()
    images = [Image.open(file) for file in s["files"]]
    found = model.encode(
        images, batch_size=s["batch_size"], show_progress_bar=False, normalize_embeddings=True
    )
    np.save(s["out"] + ".npy", found)
    return {"seconds": time.perf_counter() - start}


def diptych(s: dict[str, Any], auto: bool = False) -> dict[str, Any]:
    """`diptych embed`'s job into Parquet; and the bound, its model's forward time alone.

    How this machine computes best was found before, as it is once for a model: `warm_up_seconds`.
    """
    from diptych.data.checking.index import Index
    from diptych.embed.embedder import EmbedConfig, Embedder
    from diptych.embed.job import JobConfig, embed
    from diptych.embed.pace import first_rows, settled
    from diptych.machine import keep_freed_memory, share_one_heap
    from diptych.model.folder import load_model
    from diptych.progress import Progress

    share_one_heap()  # as the command does

    settings = EmbedConfig.from_dict(
        {**s["settings"], "batch_size": s["batch_size"], "normalize": True}
    )
    embedder = Embedder(load_model(s["model"]).to(s["device"]), settings)
    _ = embedder.fingerprint  # reads all weights; not part of anybody's time
    keep_freed_memory()
    out = Path(s["out"] + "-parquet")
    index = Index.build(s["rows"], out / "_job" / "data", verify="none", progress=False)
    batches = in_memory(embedder, index, s["batch_size"])
    start = time.perf_counter()
    pace = settled(embedder, first_rows(s["rows"], s["settings"]["what"]), auto=auto)
    warm_up = time.perf_counter() - start
    before = forward_seconds(embedder, batches)
    embedder = embedder.in_precision(pace.precision)
    _ = embedder.fingerprint
    start = time.perf_counter()
    job = JobConfig(to=(f"parquet:{out}",), state=out / "_job", workers=s["workers"], pace=pace)
    summary = embed(embedder, s["rows"], job, progress=Progress(out / "log", quiet=True))
    seconds = time.perf_counter() - start
    assert summary["written"] == len(s["files"]), summary
    after = forward_seconds(embedder.in_precision("float32"), batches)
    from diptych.embed.vector_index import open_vectors

    stored = open_vectors(f"parquet:{out}")
    np.save(s["out"] + ".npy", stored.take([Path(f).stem for f in s["files"]])[0])
    return {
        "seconds": seconds, "bound_seconds": (before + after) / 2, "bounds": [before, after],
        "pace": str(pace), "warm_up_seconds": warm_up,
    }  # fmt: skip


def diptych_auto(s: dict[str, Any]) -> dict[str, Any]:
    """The same with `--precision auto`."""
    return diptych(s, auto=True)


def batch_sizes(s: dict[str, Any]) -> dict[str, Any]:
    """Forward milliseconds a picture over batch sizes, on tensors in memory."""
    from diptych.data.checking.index import Index
    from diptych.embed.embedder import EmbedConfig, Embedder
    from diptych.machine import keep_freed_memory
    from diptych.model.folder import load_model

    model = load_model(s["model"]).to(s["device"])
    embedder = Embedder(model, EmbedConfig.from_dict(s["settings"]))
    keep_freed_memory()
    index = Index.build(s["rows"], s["out"] + "-data", verify="none", progress=False)
    found = {}
    for size in (1, 2, 4, 8, 16, 32):
        if size <= len(index):
            batches = in_memory(embedder, index, size)
            counted = len(index) // size * size
            seconds = forward_seconds(embedder, batches[: len(index) // size])
            found[size] = 1000 * seconds / counted
    return {"milliseconds": found}


def in_memory(embedder: Any, index: Any, size: int) -> list[Any]:
    """All rows as prepared batches."""
    from diptych.data.batching.picture_loader import Item

    batches = []
    for start in range(0, len(index), size):
        samples = index[start : start + size]
        batches += embedder.prepare([Item(x, index.image_bytes) for x in samples]).batches
    return batches


def forward_seconds(embedder: Any, batches: list[Any]) -> float:
    """Seconds of the model alone over these batches, after one to warm up."""
    embedder.embed(batches[0])
    start = time.perf_counter()
    for batch in batches:
        embedder.embed(batch)
    return time.perf_counter() - start


def hf_model(s: dict[str, Any]) -> tuple[Any, Any]:
    """The same weights in transformers' own class, and its processor."""
    import transformers

    if s["kind"] == "clip":
        model = transformers.CLIPModel.from_pretrained(s["hf"])
        return model.to(s["device"]).eval(), transformers.CLIPImageProcessor.from_pretrained(
            s["hf"]
        )
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(s["hf"])
    processor = transformers.BlipImageProcessor.from_pretrained(s["hf"])
    processor.words = transformers.AutoTokenizer.from_pretrained(s["hf"])
    return model.to(s["device"]).eval(), processor


def forward(
    s: dict[str, Any], model: Any, processor: Any, images: Any, pixels: torch.Tensor | None = None
) -> torch.Tensor:
    """Unit vectors [n, D]: image features of CLIP, mean of the queries of BLIP-2 with a text."""
    if pixels is None:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(s["device"])
    if s["kind"] == "clip":
        found = model.get_image_features(pixel_values=pixels)
        found = getattr(found, "pooler_output", found)
        return torch.nn.functional.normalize(found, dim=-1)
    text = processor.words([PERSON] * len(pixels), return_tensors="pt").to(s["device"])
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    ones = torch.ones(queries.shape[:2], dtype=torch.int64, device=s["device"])
    mask = torch.cat([ones, text.attention_mask], 1)
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=text.input_ids, query_embeds=queries),
        query_length=queries.shape[1],
        attention_mask=mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=s["device"]),
    ).last_hidden_state[:, : queries.shape[1]]
    return torch.nn.functional.normalize(states.mean(1), dim=-1)


def main() -> None:
    name, file, out = sys.argv[1:]
    settings = json.loads(Path(file).read_text())
    torch.set_num_threads(settings["threads"])
    contenders = (
        notebook, dataloader, sentence_transformers, diptych, diptych_auto, batch_sizes,
    )  # fmt: skip
    found = {c.__name__: c for c in contenders}[name](settings)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
