"""One training run of open_clip, started by clip_vs_open_clip.py in open_clip's own environment.

    python open_clip_run.py tokenizer OUT            its vocabulary as files for transformers
    python open_clip_run.py compare TEXTS.json   whether ids are those that it reads itself
    python open_clip_run.py initial SETTINGS.json    weights that training starts from, as files
    python open_clip_run.py train SETTINGS.json      its own training loop, timed; writes figures

Only open_clip, torch and the standard library are used here.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image


def write_tokenizer(out: Path) -> None:
    """vocab.json and merges.txt of open_clip's own tokenizer."""
    own = open_clip.tokenizer.SimpleTokenizer()
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(own.encoder))
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def compare(file: Path) -> None:
    """Fail unless the ids in `file` are those of open_clip's tokenizer, cut and padded alike."""
    given = json.loads(file.read_text(encoding="utf-8"))
    own = open_clip.tokenizer.SimpleTokenizer()
    wanted = own(given["texts"], context_length=77)
    wrong = 0
    for text, ids, row in zip(given["texts"], given["ids"], wanted.tolist(), strict=True):
        length = min(len(ids), 77)
        if ids[: length - 1] != row[: length - 1] or any(row[length:]):
            wrong += 1
            print("read differently:", text)
    print(f"{wrong} of {len(wanted)} texts are read differently")
    if wrong > 0.01 * len(wanted):
        sys.exit("the tokenizers do not agree")


def known(settings: dict) -> str:
    """Make open_clip know the model; its name."""
    name = "peer"
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(settings["model"]))
    open_clip.add_model_config(out / f"{name}.json")
    return name


def initial(settings: dict) -> None:
    """weights.pt as open_clip draws them; probe.pt with some texts and their vectors."""
    torch.manual_seed(settings["seed"])
    name = known(settings)
    model, _, _ = open_clip.create_model_and_transforms(name)
    torch.save(model.state_dict(), settings["weights"])
    texts = [text for _, text in settings["test"][:50]]
    with torch.inference_mode():
        vectors = model.eval().encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    torch.save({"texts": texts, "vectors": vectors}, Path(settings["out"]) / "probe.pt")


def train(settings: dict) -> dict:
    """Train with open_clip_train's main, then embed the test pairs with the last checkpoint."""
    from open_clip_train import main as program

    torch.set_num_threads(settings["num_threads"])
    out = Path(settings["out"])
    name = known(settings)
    with (out / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title"])
        writer.writerows(settings["train"])

    create = program.create_model_and_transforms

    def with_weights(*args, **kwargs):
        made = create(*args, **kwargs)
        weights = torch.load(settings["weights"], map_location="cpu", weights_only=True)
        made[0].load_state_dict(weights)
        return made

    program.create_model_and_transforms = with_weights
    epochs = []
    own_epoch = program.train_one_epoch

    def timed(*args, **kwargs):
        start = time.perf_counter()
        own_epoch(*args, **kwargs)
        epochs.append(time.perf_counter() - start)

    program.train_one_epoch = timed
    program.main(
        [
            "--train-data", str(out / "train.csv"), "--dataset-type", "csv",
            "--csv-img-key", "filepath", "--csv-caption-key", "title",
            "--model", name, "--batch-size", str(settings["batch_size"]),
            "--epochs", str(settings["num_epochs"]), "--lr", str(settings["learning_rate"]),
            "--wd", str(settings["weight_decay"]), "--beta1", "0.9", "--beta2", "0.98",
            "--eps", "1e-6", "--warmup", str(settings["warmup_steps"]),
            "--precision", settings["precision"], "--workers", str(settings["num_workers"]),
            "--seed", str(settings["seed"]), "--logs", str(out / "logs"), "--name", "run",
            "--save-frequency", str(settings["num_epochs"]), "--grad-clip-norm", "1.0",
        ]
    )  # fmt: skip
    file = out / "logs" / "run" / "checkpoints" / f"epoch_{settings['num_epochs']}.pt"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    model.eval()
    tokenize = open_clip.get_tokenizer(name)
    images, texts = [], []
    with torch.inference_mode():
        for start in range(0, len(settings["test"]), 100):
            rows = settings["test"][start : start + 100]
            pixels = torch.stack([preprocess(Image.open(path)) for path, _ in rows])
            images.append(model.encode_image(pixels, normalize=True))
            texts.append(model.encode_text(tokenize([t for _, t in rows]), normalize=True))
    similarity = torch.cat(images) @ torch.cat(texts).T
    own = similarity.diag()
    return {
        "epoch_seconds": epochs,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "text_rank": ((similarity >= own[:, None]).sum(1) - 1).tolist(),
        "image_rank": ((similarity >= own[None, :]).sum(0) - 1).tolist(),
        "versions": {"open_clip": open_clip.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    if sys.argv[1] == "tokenizer":
        write_tokenizer(Path(sys.argv[2]))
    elif sys.argv[1] == "compare":
        compare(Path(sys.argv[2]))
    elif sys.argv[1] == "initial":
        initial(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    else:
        values = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        figures = train(values)
        (Path(values["out"]) / "figures.json").write_text(json.dumps(figures))
