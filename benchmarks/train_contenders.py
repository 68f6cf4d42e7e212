"""The contenders of train_throughput.py; each runs in a process of its own.

    python train_contenders.py (prepare | diptych | transformers) WORK FOLDER

WORK holds the charts and the weights, FOLDER the run's settings.json and then its result.json.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any


def part(name: str, work: Path, folder: Path) -> None:
    """What a child process does."""
    settings = json.loads((folder / "settings.json").read_text())
    if name == "prepare":
        result = prepare(work, settings)
    else:
        run = {"diptych": run_diptych, "transformers": run_transformers}[name]
        steps = run(work, folder / "run", settings)
        result = {"steps": steps, **_peak_memory()}
    (folder / "result.json").write_text(json.dumps(result))


def prepare(work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Draw the charts and write the same weights in both layouts."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from diptych.model.architectures.vlm import VlmConfig
    from diptych.model.folder import build, save_model
    from diptych.model.weights import locate
    from diptych.synthetic.charts.dataset import draw

    summary = draw(
        work / "charts",
        num=settings["charts"],
        seed=settings["seed"],
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    model = build(
        VlmConfig.from_dict(
            {
                "vision_encoder": {
                    "config": settings["encoder"],
                    "layer": -2,
                    "image": {"resize": "exact", "size": [224, 224]},
                },
                "connector": "mlp",
                "language_model": {"weights": str(locate(settings["language_model"]))},
            }
        ),
        seed=settings["seed"],
    )
    save_model(model, work / "model")
    text_config: Any = model.language_model.hf_config
    config = LlavaConfig(
        vision_config=model.vision_encoder.hf_config,
        text_config=text_config,
        image_token_index=_image_token(model.tokenizer),
        image_seq_length=model.tokens_per_image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    names = {
        "vision_encoder.module.": "model.vision_tower.",
        "connector.": "model.multi_modal_projector.",
        "language_model.module.model.": "model.language_model.",
        "language_model.module.lm_head.": "lm_head.",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        tensors[names[ours] + name.removeprefix(ours)] = tensor
    llava = LlavaForConditionalGeneration(config)
    llava.load_state_dict(tensors)
    llava.save_pretrained(work / "llava")
    return {
        "num_questions": summary["questions"]["train"],
        "tokens_per_image": model.tokens_per_image,
        "parameters": sum(p.numel() for p in model.parameters()),
        "environment": _environment(),
    }


def _image_token(tokenizer: Any) -> int:
    """A reserved token that no chart question uses, so that no row has to be added."""
    used = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    used |= {tokenizer.unk_token_id, *tokenizer.encode("<|im_start|><|im_end|>")}
    return max(set(tokenizer.added_tokens_decoder) - used)


def _environment() -> dict[str, Any]:
    import psutil
    import torch
    import transformers

    import diptych

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diptych": diptych.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _peak_memory() -> dict[str, Any]:
    """Of this process, or of the GPU where there is one.

    `ru_maxrss` would do, but a child starts with its parent's on Linux; VmHWM is its own.
    """
    import torch

    if torch.cuda.is_available():
        return {"memory_bytes": torch.cuda.max_memory_allocated(), "memory_of": "gpu"}
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return {"memory_bytes": int(line.split()[1]) * 1024, "memory_of": "process"}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory_bytes": peak, "memory_of": "process"}


def run_diptych(work: Path, run: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """One figure per step, as the Trainer writes them to metrics.jsonl."""
    import diptych
    from diptych.progress import Progress
    from diptych.train.stage import Stage
    from diptych.train.trainer import Trainer

    stage = Stage.from_dict(
        {
            "name": "instruct",
            "data": [
                {
                    "path": str(work / "charts" / "train.json"),
                    "images": str(work / "charts" / "images"),
                }
            ],
            "learn": {"connector": {}, "language_model": {"how": settings["learn"]}},
            "num_steps": settings["warmup_steps"] + settings["steps"],
            "global_batch_size": settings["global_batch"],
            "learning_rate": settings["learning_rate"],
            "schedule": {"shape": "constant", "warmup_share": 0.0},
            "precision": settings["precision"],
            "tokens_per_row": settings["tokens_per_row"],
            "rows_per_batch": 1,
            "cache_features": "off",
            "num_workers": 1,
        }
    )
    trainer = Trainer(
        diptych.load(work / "model"),
        [stage],
        run,
        seed=settings["seed"],
        trackers=(),
        progress=Progress(quiet=True),
    )
    trainer.train()
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            "seconds": line["seconds"],
            "loss": line["loss"],
            "questions": line["samples"],
            "supervised_tokens": line["supervised_tokens"],
            "processed_tokens": line["real_tokens"],
            "padded_tokens": round(line["real_tokens"] / (1 - line["padding_share"])),
        }
        for line in lines
    ]


def run_transformers(work: Path, run: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The baseline, one figure per step."""
    import torch
    import transformers
    from torch.utils.data import Dataset

    from diptych.data.batching.batch import IGNORE, IMAGE_TOKEN
    from diptych.data.batching.mixture import Mixture
    from diptych.data.checking.index import Index
    from diptych.data.pixels.image import decode
    from diptych.data.text.chat import Fate
    from diptych.model.folder import load_model
    from diptych.train.feed import sharing_keys

    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        work / "llava", dtype=torch.float32
    )
    reader = load_model(work / "model")
    encoder, preprocessing = reader.chat_encoder, reader.vision_encoder.preprocessing
    pad_token = reader.tokenizer.pad_token_id or 0
    del reader
    image_token = model.config.image_token_id
    index = Index.build(
        str(work / "charts" / "train.json"), run / "data", images=str(work / "charts" / "images")
    )
    mixture = Mixture([sharing_keys(index)], seed=settings["seed"])
    num_steps = settings["warmup_steps"] + settings["steps"]

    class Questions(Dataset):
        """The questions in the order in which Diptych visits them."""

        def __len__(self) -> int:
            return num_steps * settings["global_batch"]

        def __getitem__(self, position: int) -> dict[str, Any]:
            sample = index[mixture.at(position)[1]]
            encoded = encoder.encode(sample)
            pairs = list(zip(encoded.ids, encoded.fates, strict=True))
            pixels = [preprocessing.apply(decode(index.image_bytes(i))) for i in encoded.images]
            return {
                "input_ids": torch.tensor(
                    [image_token if i == IMAGE_TOKEN else i for i, _ in pairs]
                ),
                "labels": torch.tensor([i if f is Fate.TARGET else IGNORE for i, f in pairs]),
                "pixel_values": torch.from_numpy(pixels[0]),
            }

    def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
        def padded(name: str, filler: int) -> Any:
            return torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in rows], batch_first=True, padding_value=filler
            )

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        input_ids = padded("input_ids", pad_token)
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": padded("labels", IGNORE),
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        }

    steps: list[dict[str, Any]] = []

    class Counting(transformers.Trainer):
        """Counts what goes through the model."""

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            step = steps[-1]
            step["questions"] += len(inputs["input_ids"])
            step["supervised_tokens"] += int((inputs["labels"][:, 1:] != IGNORE).sum())
            step["processed_tokens"] += int(inputs["attention_mask"].sum())
            step["padded_tokens"] += inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *rest, **more)
            step["loss"] += float(loss)
            return loss

    class Clock(transformers.TrainerCallback):
        """Times a step from the end of the one before, loading included."""

        last = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.last = time.monotonic()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            names = ("questions", "supervised_tokens", "processed_tokens", "padded_tokens")
            steps.append({**dict.fromkeys(names, 0), "loss": 0.0})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.monotonic()
            steps[-1]["seconds"], self.last = now - self.last, now

    if settings["learn"] == "lora":
        model = _with_lora(model)
    for name, parameter in model.named_parameters():
        if "vision_tower" in name:
            parameter.requires_grad_(False)
        elif "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    arguments = transformers.TrainingArguments(
        output_dir=str(run),
        max_steps=num_steps,
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["global_batch"] // settings["micro_batch"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=settings["precision"] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        dataloader_num_workers=1,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        seed=settings["seed"],
    )
    Counting(
        model=model,
        args=arguments,
        train_dataset=Questions(),
        data_collator=pad,
        callbacks=[Clock()],
    ).train()
    return steps


def _with_lora(model: Any) -> Any:
    """The adapters that Diptych's defaults give."""
    import peft

    from diptych.model.adapters import LoraConfig

    ours = LoraConfig()
    settings = peft.LoraConfig(
        r=ours.rank,
        lora_alpha=ours.alpha,  # type: ignore[arg-type]
        lora_dropout=ours.dropout,
        target_modules=r".*language_model\..*_proj",
    )
    return peft.get_peft_model(model, settings)


if __name__ == "__main__":
    part(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
