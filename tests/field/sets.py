"""Small files in the shape and with the habits of published data sets; every word is our own.

Sources of the shapes: the data cards and READMEs of liuhaotian/LLaVA-Instruct-150K and
LLaVA-Pretrain, lmms-lab/LLaVA-NeXT-Data, Lin-Chen/ShareGPT4V, cocodataset.org, Karpathy's
dataset_coco.json and LAVIS' copies of it, visualqa.org, textvqa.org, scienceqa.github.io,
vis-nlp/ChartQA, HuggingFaceH4/llava-instruct-mix-vsft, and the documentation of ms-swift,
LLaMA-Factory and img2dataset.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220)}


def picture(colour: str, size: int = 28, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (size, size), COLOURS[colour]).save(buffer, format=kind)
    return buffer.getvalue()


def put(folder: Path, name: str, colour: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(colour))
    return name


def said(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


def spoken(*turns: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(turns)]


def as_json(folder: Path, rows: Any, name: str) -> Path:
    (folder / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return folder / name


def as_lines(folder: Path, rows: list[Any], name: str) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@dataclass(frozen=True)
class Set:
    """One published set in small.

    Attributes:
        write: makes it in a folder and returns the path to read.
        rows, good: rows read, samples that are used.
        images: pictures that the good samples show.
        notes: what must be named, as parts of the notes.
        rejects: error name -> how often.
        to: what it is written back as: an ending, a file's name, or the kind of shard.
    """

    name: str
    write: Callable[[Path], Path]
    rows: int
    good: int
    images: int
    notes: tuple[str, ...] = ()
    rejects: dict[str, int] = field(default_factory=dict)
    to: str = "jsonl"


SETS: list[Set] = []


def published(name: str, **about: Any) -> Callable[[Callable[[Path], Path]], None]:
    def add(write: Callable[[Path], Path]) -> None:
        SETS.append(Set(name, write, **about))

    return add


ONE_WORD = "\nAnswer the question using a single word or phrase."


@published("llava_instruct_150k", rows=4, good=4, images=4, notes=("id used before",), to="json")
def _(folder: Path) -> Path:
    red, blue = (put(folder, f"00000003347{n}.jpg", c) for n, c in enumerate(("red", "blue")))
    rows = [
        {"id": "000000033470", "image": red, "conversations": said(
            "<image>\nWhat colour fills the picture?", "It is red all over.",
            "Is anything else to be seen?", "No, nothing else.")},
        {"id": "000000033470", "image": red, "conversations": said(
            "Describe the picture in detail.\n<image>", "A plain red square, without any shape in it.")},
        {"id": "000000033470", "image": red, "conversations": said(
            "<image>\nWhy may somebody paint a wall so?", "To draw attention to it.")},
        {"id": "000000033471", "image": blue, "conversations": said(
            "What is the mood of it?\n<image>", "Calm, as blue often is.")},
    ]  # fmt: skip
    return as_json(folder, rows, "llava_instruct_150k.json")


@published(
    "llava_v1_5_mix665k", rows=9, good=9, images=6, to="json", notes=("id used before",)
)  # fmt: skip
def _(folder: Path) -> Path:
    red = put(folder, "coco/train2017/000000033470.jpg", "red")
    book = put(folder, "ocr_vqa/images/140031996.jpg", "green")
    text = put(folder, "textvqa/train_images/011e7e629fb9ae7b.jpg", "blue")
    region = put(folder, "vg/VG_100K/2.jpg", "green")
    gqa = put(folder, "gqa/images/2352722.jpg", "red")
    rows = [
        {"id": "000000033470", "image": red, "conversations": said(
            f"<image>\nWhat colour is it?{ONE_WORD}", "Red", f"Is it dark?{ONE_WORD}", "No")},
        {"id": "000000033470", "image": red, "conversations": said(
            "<image>\nWhat is this?\nA. a square\nB. a circle\nAnswer with the option's letter from "
            "the given choices directly.", "A")},
        {"id": "VgByO4Y_0", "model": "", "conversations": said(
            "Write a line about the sea.", "The sea keeps its own time.", "Another one?", "Salt remembers.")},
        {"id": "VgByO4Y_0", "model": "", "conversations": said("And one about sand?", "Sand counts.")},
        {"id": "140031996", "image": book, "conversations": said(
            "<image>\nWho wrote this book?\nAnswer the question using a single word or phrase.",
            "A. Nobody", "What is the title?", "Green")},
        {"id": "011e7e629fb9ae7b", "image": text, "conversations": said(
            "<image>\nProvide a one-sentence caption.\nReference OCR token: BLUE, 12", "A sign that says blue 12.")},
        {"id": 2, "image": region, "conversations": said(
            "<image>\nPlease provide a short description for this region: [0.0, 0.25, 0.5, 0.75].",
            "the left of a green square",
            "Please provide the bounding box coordinate of the region this sentence describes: green square.",
            "[0.0, 0.0, 1.0, 1.0]")},
        {"id": 2352722, "image": gqa, "conversations": said(f"<image>\nIs it red?{ONE_WORD}", "Yes")},
        {"id": "tMfV5fg_17", "model": "", "conversations": said("  Say hi in Chinese. ", "你好！\n")},
    ]  # fmt: skip
    return as_json(folder, rows, "llava_v1_5_mix665k.json")


@published("blip_laion_cc_sbu_558k", rows=3, good=3, images=3, to="json")
def _(folder: Path) -> Path:
    rows = []
    for number, (colour, ask) in enumerate(
        [
            ("red", "Render a clear and concise summary of the photo.\n<image>"),
            ("green", "<image>\nWrite a terse but informative summary of the picture."),
            ("blue", "<image>\nWhat is this?"),
        ]
    ):
        name = f"00453/00453937{number}.jpg"
        rows.append(
            {"id": f"00453937{number}", "image": put(folder, name, colour),
             "conversations": said(ask, f"a {colour} square on {colour} ground")}
        )  # fmt: skip
    return as_json(folder, rows, "blip_laion_cc_sbu_558k.json")


@published(
    "llava_next_data", rows=3, good=3, images=2, to="parquet",
    notes=("column 'data_source' is not followed",),
)  # fmt: skip
def _(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [
        said("<image>\nRead the chart: which bar is highest?", "The red one."),
        said("What is 12 times 12?", "144"),
        said("<image>\n请描述这张图片。", "一个绿色的正方形。"),
    ]
    shown = [
        {"bytes": picture("red"), "path": None}, None, {"bytes": picture("green"), "path": "b.jpg"},
    ]  # fmt: skip
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "id": ["chartqa_1", "magpie_2", "wild_3"],
            "image": pa.array(shown, kind),
            "conversations": turns,
            "data_source": ["chartqa", "text", "wild"],
        }
    )
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder / "train-00000-of-00001.parquet"


@published("sharegpt4v", rows=3, good=3, images=2, notes=("id used before",), to="json")
def _(folder: Path) -> Path:
    sam = put(folder, "sam/images/sa_545504.jpg", "green")
    coco = put(folder, "coco/train2017/000000000009.jpg", "red")
    rows = [
        {"id": "sa_545504", "image": sam, "conversations": said(
            "What do you see happening in this image?\n<image>",
            "In the heart of the picture lies one green field.\n\nNothing breaks it, and its evenness "
            "speaks of a printer's ink rather than of grass.")},
        {"id": "000000000009", "image": coco, "conversations": said(
            "<image>\nAnalyze the image in a comprehensive and detailed manner.", "A red plane.")},
        {"id": "000000000009", "conversations": said("Name a colour.", "Red.")},
    ]  # fmt: skip
    return as_json(folder, rows, "sharegpt4v_mix.json")


@published("coco captions", rows=3, good=3, images=3, to="json")
def _(folder: Path) -> Path:
    red, blue = put(folder, "000000000139.jpg", "red"), put(folder, "000000000285.jpg", "blue")
    whole = {
        "info": {"description": "small", "year": 2017},
        "licenses": [{"id": 3, "name": "a licence"}],
        "images": [
            {"license": 3, "file_name": red, "coco_url": "http://example.org/1", "height": 28,
             "width": 28, "date_captured": "2013-11-21 01:34:01", "id": 139},
            {"license": 3, "file_name": blue, "height": 28, "width": 28, "id": 285},
        ],
        "annotations": [
            {"image_id": 139, "id": 38, "caption": "A red square with nothing in it."},
            {"image_id": 285, "id": 41, "caption": "A blue square. "},
            {"image_id": 139, "id": 47, "caption": "Red, red, red"},
        ],
    }  # fmt: skip
    return as_json(folder, whole, "captions_val2017.json")


@published("karpathy, LAVIS test", rows=2, good=2, images=2, to="json")
def _(folder: Path) -> Path:
    rows = [
        {"image": put(folder, "val2014/COCO_val2014_000000391895.jpg", "red"),
         "caption": ["A red square.", "Something red.", "A square in one colour.", "Red paper.", "red"]},
        {"image": put(folder, "val2014/COCO_val2014_000000060623.jpg", "blue"),
         "caption": ["A blue square.", "The sky, maybe."]},
    ]  # fmt: skip
    return as_json(folder, rows, "coco_karpathy_test.json")


@published("karpathy, LAVIS train", rows=2, good=2, images=2, to="json")
def _(folder: Path) -> Path:
    name = put(folder, "val2014/COCO_val2014_000000522418.jpg", "green")
    rows = [
        {"caption": "A green square.", "image": name, "image_id": "coco_522418"},
        {"caption": "Grass without a blade.", "image": name, "image_id": "coco_522418"},
    ]
    return as_json(folder, rows, "coco_karpathy_train.json")


@published("karpathy, dataset_coco", rows=2, good=2, images=2, to="json")
def _(folder: Path) -> Path:
    def image(number: int, name: str, split: str, *sentences: str) -> dict[str, Any]:
        return {
            "filepath": "val2014", "sentids": list(range(len(sentences))), "filename": name,
            "imgid": number, "split": split, "cocoid": 391895 + number,
            "sentences": [
                {"tokens": s.lower().strip(".").split(), "raw": s, "imgid": number, "sentid": n}
                for n, s in enumerate(sentences)
            ],
        }  # fmt: skip

    names = [
        put(folder, f"val2014/COCO_val2014_00000039189{n}.jpg", c)
        for n, c in enumerate(("red", "blue"))
    ]
    whole = {
        "images": [
            image(0, Path(names[0]).name, "test", "A red square.", "Red it is."),
            image(1, Path(names[1]).name, "train", "A blue square."),
        ],
        "dataset": "coco",
    }
    return as_json(folder, whole, "dataset_coco.json")


@published("vg captions, LAVIS", rows=2, good=2, images=2, to="json")
def _(folder: Path) -> Path:
    name = put(folder, "image/2.jpg", "green")
    rows = [
        {"image": name, "caption": "left of the green field"},
        {"image": name, "caption": "the field is green"},
    ]
    return as_json(folder, rows, "vg_caption.json")


@published(
    "vqav2", rows=3, good=2, images=2, rejects={"OneSidedConversation": 1}, to="back_questions.json"
)
def _(folder: Path) -> Path:
    for number, colour in ((262148, "red"), (393225, "blue")):
        put(folder, f"COCO_val2014_{number:012d}.jpg", colour)
    about = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco",
             "license": {"name": "a licence"}, "data_subtype": "val2014"}  # fmt: skip
    questions = [
        {"image_id": 262148, "question": "What colour is it?", "question_id": 262148000},
        {"image_id": 393225, "question": "Is it blue?", "question_id": 393225000},
        {"image_id": 393225, "question": "Who asks without an answer?", "question_id": 393225001},
    ]
    annotations = [
        {"question_type": "what color is", "multiple_choice_answer": best, "image_id": image,
         "answer_type": kind, "question_id": image * 1000,
         "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1}
                     for n, a in enumerate([best] * 7 + others)]}
        for image, best, others, kind in (
            (262148, "red", ["dark red", "red", "pink"], "other"),
            (393225, "yes", ["yes", "no", "yes"], "yes/no"),
        )
    ]  # fmt: skip
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    as_json(folder, {**about, "annotations": annotations}, "v2_mscoco_val2014_annotations.json")
    return as_json(folder, {**about, "questions": questions}, name)


@published(
    "textvqa", rows=2, good=2, images=2, to="jsonl",
    notes=("column 'image_classes'", "column 'flickr_original_url'", "column 'question_tokens'"),
)  # fmt: skip
def _(folder: Path) -> Path:
    rows = []
    for number, (name, colour) in enumerate(
        (("0054c91397f2fe05", "red"), ("005635e119b9f32f", "blue"))
    ):
        put(folder, f"{name}.jpg", colour)
        rows.append(
            {"question": "what is the brand?", "image_id": name, "image_classes": ["Sign"],
             "flickr_original_url": "https://example.org/x.jpg", "image_width": 28, "image_height": 28,
             "answers": [f"{colour} co"] * 8 + ["unanswerable", colour],
             "question_tokens": ["what", "is", "the", "brand"], "question_id": 34602 + number,
             "set_name": "val"}
        )  # fmt: skip
    whole = {
        "dataset_type": "val",
        "dataset_name": "textvqa",
        "dataset_version": "0.5.1",
        "data": rows,
    }
    return as_json(folder, whole, "TextVQA_0.5.1_val.json")


@published(
    "scienceqa", rows=2, good=2, images=1,
    notes=("column 'hint' is not followed", "column 'lecture' is not followed"),
)  # fmt: skip
def _(folder: Path) -> Path:
    rest = {"task": "closed choice", "grade": "grade2", "subject": "natural science",
            "topic": "physics", "category": "Colour", "skill": "See", "solution": "Look."}  # fmt: skip
    rows = [
        {"image": put(folder, "1/image.jpg", "red"), "question": "Which colour is it?",
         "choices": ["green", "red"], "answer": 1, "hint": "Think of fire.", "lecture": "", **rest},
        {"image": None, "question": "Which is larger?", "choices": ["a hill", "a mountain", "a stone"],
         "answer": 1, "hint": "", "lecture": "Hills are small mountains.", **rest},
    ]  # fmt: skip
    return as_lines(folder, rows, "scienceqa.jsonl")


@published("scienceqa, LLaVA", rows=2, good=2, images=1, to="json")
def _(folder: Path) -> Path:
    rows = [
        {"id": "1", "image": put(folder, "1/image.jpg", "red"), "conversations": said(
            "Context: Think of fire.\nQuestion: Which colour is it?\nOptions: (A) green (B) red\n<image>",
            "LECTURE: Light.\nSOLUTION: Look.\n###\nANSWER: B.")},
        {"id": "2", "conversations": said(
            "Context: N/A\nQuestion: Which is larger?\nOptions: (A) a hill (B) a mountain", "ANSWER: B.")},
    ]  # fmt: skip
    return as_json(folder, rows, "llava_train_QCM-LEA.json")


@published("foodieqa", rows=2, good=2, images=2, notes=("column 'question_en' is not followed",))
def _(folder: Path) -> Path:
    rows = [
        {"question": "图片中的食物通常属于哪个菜系?", "choices": ["京菜", "徽菜", "新疆菜", "桂菜"],
         "answer": answer, "question_type": "cuisine_type", "food_name": "大盘鸡",
         "question_id": f"vqa-{number}", "question_en": "Which cuisine is this?",
         "food_meta": {"id": number, "food_name": "大盘鸡", "food_location": "餐馆",
                       "main_ingredient": ["肉"],
                       "food_file": put(folder, f"images/{number}.jpg", colour)}}
        for number, (answer, colour) in enumerate((("2", "red"), ("0", "blue")))
    ]  # fmt: skip
    return as_json(folder, rows, "sivqa_tidy.json")


@published("chartqa", rows=2, good=2, images=2, notes=("column 'human_or_machine'",))
def _(folder: Path) -> Path:
    rows = [
        {"imgname": put(folder, "two_col_42.png", "red"), "query": "How many bars are red?", "label": "3"},
        {"imgname": put(folder, "41699051005347.png", "blue"), "query": "What is the value of West?",
         "label": ["12.5"], "human_or_machine": 1},
    ]  # fmt: skip
    return as_lines(folder, rows, "test_human.jsonl")


@published("llava-instruct-mix-vsft", rows=2, good=2, images=3, to="parquet")
def _(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def text(words: str) -> dict[str, Any]:
        return {"index": None, "text": words, "type": "text"}

    def shown(index: int) -> dict[str, Any]:
        return {"index": index, "text": None, "type": "image"}

    rows = [
        (
            [("user", [text("What colour is it?\n"), shown(0)]), ("assistant", [text("Green.")])],
            [picture("green")],
        ),
        # The parts name the pictures in another order than they lie there.
        (
            [("user", [shown(1), text("and"), shown(0), text("Which is red?")]),
             ("assistant", [text("The second.")])],
            [picture("red"), picture("blue")],
        ),
    ]  # fmt: skip
    part = pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())])
    message = pa.struct([("content", pa.list_(part)), ("role", pa.string())])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "messages": pa.array(
                [[{"role": r, "content": c} for r, c in turns] for turns, _ in rows],
                pa.list_(message),
            ),
            "images": pa.array(
                [[{"bytes": b, "path": None} for b in images] for _, images in rows], pa.list_(kind)
            ),
        }
    )
    pq.write_table(table, folder / "train-00000-of-00020.parquet")
    return folder / "train-00000-of-00020.parquet"


@published(
    "ms-swift", rows=5, good=5, images=5,
    notes=("column 'objects' is not followed (boxes", "column 'rejected_response'"),
)  # fmt: skip
def _(folder: Path) -> Path:
    red, blue = put(folder, "red.jpg", "red"), put(folder, "blue.jpg", "blue")
    rows = [
        {"messages": [{"role": "system", "content": "You look at squares."},
                      *spoken("<image>What is in it?", "Red.")], "images": [red]},
        {"system": "You look at squares.", "messages": spoken("<image><image>Which is blue?", "The second."),
         "images": [red, blue]},
        {"messages": spoken("What colour is it?", "Blue."), "images": [blue]},
        {"messages": [{"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hm.", "loss": False},
                      {"role": "user", "content": "Hi again"},
                      {"role": "assistant", "content": "Hello!", "loss": True}],
         "rejected_response": "Go away."},
        {"messages": spoken("<image>Find the <ref-object>", "<bbox>"), "images": red,
         "objects": {"ref": ["square"], "bbox": [[0, 0, 28, 28]]}},
    ]  # fmt: skip
    return as_lines(folder, rows, "swift.jsonl")


@published(
    "LLaMA-Factory", rows=4, good=3, images=3, rejects={"UnknownRole": 1},
    notes=("column 'tools' is not followed (tool definitions)",),
)  # fmt: skip
def _(folder: Path) -> Path:
    red, blue = put(folder, "red.jpg", "red"), put(folder, "blue.jpg", "blue")
    rows = [
        {"conversations": said("<image>What is it?", "A red square."), "images": [red],
         "system": "Answer briefly."},
        {"conversations": said("<image>And <image>?", "Red and blue."), "images": [red, blue],
         "tools": "[{\"name\": \"look\"}]"},
        {"conversations": [{"from": "human", "value": "Weather?"},
                           {"from": "function_call", "value": "{}"}]},
        {"conversations": said("Only words.", "Fine."), "images": [], "system": ""},
    ]  # fmt: skip
    return as_lines(folder, rows, "mllm_demo.jsonl")


@published("xtuner v1", rows=2, good=2, images=3)
def _(folder: Path) -> Path:
    red, blue = put(folder, "red.jpg", "red"), put(folder, "blue.jpg", "blue")

    def shown(name: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": name, "image_wh": [28, 28]}}

    rows = [
        {"id": 1, "messages": spoken(
            [shown(red), {"type": "text", "text": "<IMG_CONTEXT>\nWhat colour is it?"}], "Red.")},
        {"id": 2, "messages": spoken(
            [shown(red), shown(blue), {"type": "text", "text": "First: <IMG_CONTEXT> Second: <IMG_CONTEXT> Which is blue?"}],
            "The second.")},
    ]  # fmt: skip
    return as_lines(folder, rows, "xtuner.jsonl")


@published(
    "img2dataset tar", rows=3, good=2, images=2, rejects={"FormatError": 1}, to="tar",
    notes=("column 'url' is not followed", "column 'original_width' is not followed"),
)  # fmt: skip
def _(folder: Path) -> Path:
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as tar:
        rows = (("000000000", "red", "a red square"), ("000000001", "green", "a green, square"),
                ("000000002", "blue", None))  # fmt: skip
        for key, colour, caption in rows:
            about = {"caption": caption, "url": f"https://example.org/{key}.jpg", "key": key,
                     "status": "success", "error_message": None, "width": 28, "height": 28,
                     "original_width": 56, "original_height": 56, "exif": "{}", "sha256": "0" * 64}  # fmt: skip
            for ending, data in (
                ("jpg", picture(colour)), ("json", json.dumps(about).encode()), ("txt", (caption or "").encode()),
            ):  # fmt: skip
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 3}))
    return path
