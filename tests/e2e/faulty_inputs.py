"""Builders for the corpus of faulty and odd inputs; everything is made at test time."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(width: int = 24, height: int = 16, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "PNG")


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A good LLaVA row about `good.png`, with changes; a change to None drops the key."""
    values = {
        "id": f"row{number}",
        "image": "good.png",
        "conversations": talk(f"<image>\nQuestion {number}?", f"Answer {number}."),
    }
    values.update(changes)
    return {k: v for k, v in values.items() if v is not DROP}


DROP = object()


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def folder_with_picture(folder: Path) -> Path:
    (folder / "good.png").write_bytes(png())
    return folder


def json_lines(folder: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    """Rows as JSON lines; text and bytes stand as they are, anything else is dumped."""
    path = folder / name
    lines = []
    for item in rows:
        if isinstance(item, str):
            item = item.encode()
        elif not isinstance(item, bytes):
            item = json.dumps(item).encode()
        lines.append(item)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def raw_file(folder: Path, data: bytes | str, name: str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def tar(folder: Path, members: list[tuple[Any, bytes]], name: str = "shard.tar") -> Path:
    """A tar of (name or TarInfo, data)."""
    path = folder / name
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def parquet(folder: Path, columns: dict[str, list[Any]], name: str = "rows.parquet") -> Path:
    import pyarrow
    import pyarrow.parquet

    path = folder / name
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def coco(folder: Path, images: list[Any], annotations: list[Any]) -> Path:
    text = json.dumps({"images": images, "annotations": annotations}, indent=1)
    return raw_file(folder, text, "captions.json")


def vqa(folder: Path, questions: list[Any], annotations: list[Any]) -> Path:
    raw_file(folder, json.dumps({"annotations": annotations}), "v2_annotations.json")
    return raw_file(folder, json.dumps({"questions": questions}), "v2_questions.json")


def question(number: int, **changes: Any) -> dict[str, Any]:
    values = {"question_id": number, "image_id": number, "question": "What?", "image": "good.png"}
    values.update(changes)
    return {k: v for k, v in values.items() if v is not DROP}


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "question_id": number,
        "image_id": number,
        "answer_type": "other",
        "question_type": "what",
        "multiple_choice_answer": "a cat",
        "answers": [{"answer": "a cat", "answer_confidence": "yes", "answer_id": 1}],
    }
    values.update(changes)
    return {k: v for k, v in values.items() if v is not DROP}


def symlink_out(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(png())
    os.symlink(outside / "secret.png", folder / "link.png")
    os.symlink(outside, folder / "linked")
