"""Visual question answering in VQAv2's two files, or as flat rows.

Two files: `{"questions": [{"question_id", "image_id", "question"}], "data_subtype"}` and
`{"annotations": [{"question_id", "question_type", "answer_type", "multiple_choice_answer",
"answers": [{"answer", ...}]}]}`. The path names the questions file, and the annotations are
found beside it by name; or both: `questions.json,annotations.json`. Flat rows (JSON lines, a
JSON array, Parquet) hold the keys of both, and `image`.

ChartQA's names (`query`, `label`, `imgname`), TextVQA's file (`{"dataset_name", "data": [rows]}`)
and ScienceQA's rows (`choices` and the number of the right one as `answer`; some without a
picture) are read as well, and FoodieQA's (the number as text, the picture in
`food_meta["food_file"]`).

The assistant says the most common answer; all stand in `meta["answers"]`, and the answer
type (else the question type) in `meta["kind"]`. Without a key `image` the picture is
`COCO_<data_subtype>_<image_id, 12 digits>.jpg`, as VQA names them.
Source: VQA v2 (arXiv:1612.00837; visualqa.org/vqa_v2_format.html).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from diptych.data import format as contract
from diptych.data.reading import fields, files, keys
from diptych.data.reading.disk_map import DiskMap
from diptych.data.reading.rows import Reject, Row, layout, object_keys, read_json, read_object
from diptych.data.sample import Image, Part, Sample, Text, Turn
from diptych.errors import DuplicateId, FormatError, OneSidedConversation
from diptych.staging import replacing

MARK = "_vqa"
# What only the pair of files says; flat rows keep it like any key they do not know.
_PAIR_MARK = "_vqa_pair"
_ANSWER_KEYS = (
    "answers", "answer", "label", "multiple_choice_answer", "question_type", "answer_type",
)  # fmt: skip
_SAID_KEYS = _ANSWER_KEYS[:3]
_QUESTION_KEYS = ("question", "query")
_IMAGE_KEYS = ("image", "imgname", "img_name")
_KNOWN = frozenset({"kind", *_QUESTION_KEYS, *_IMAGE_KEYS, *_ANSWER_KEYS})
_TEXTVQA = frozenset({"dataset_name", "data"})


def sniff(row: dict[str, Any]) -> bool:
    """VQA's list of questions, TextVQA's data, or a question with answers."""
    if "questions" in row or row.keys() >= _TEXTVQA:
        return True
    answered = any(key in row for key in (*_SAID_KEYS, "multiple_choice_answer"))
    asked = any(key in row for key in _QUESTION_KEYS)
    return asked and answered and not {"messages", "conversations"} & row.keys()


def read(path: str) -> Iterator[Sample | Reject]:
    """Samples of a pair of files, or of flat rows."""
    questions, comma, annotations = path.partition(",")
    if not comma and layout(questions) != "object":
        return contract.parsed(read_json(questions), parse)
    if not comma and "data" in set(object_keys(questions)):
        return _read_data(questions)
    return _read_pair(questions, annotations or _annotations_beside(questions))


def _read_data(path: str) -> Iterator[Sample | Reject]:
    """TextVQA's file: rows under `data`, each picture named by its id."""

    def rows() -> Iterator[Row | Reject]:
        for key, item in read_object(path, frozenset({"data"})):
            if isinstance(item, Reject):
                yield item
            elif isinstance(item, Row) and key == "data":
                value = dict(item.value)
                if "image" not in value and isinstance(value.get("image_id"), int | str):
                    value["image"] = _usual_name(value["image_id"], None)
                yield Row(value, item.where, item.raw, item.number)

    return contract.parsed(rows(), parse)


def _annotations_beside(questions: str) -> str:
    folder, name = files.parent(questions), files.base_name(questions)
    renamed = name.replace("questions", "annotations").replace("Questions", "Annotations")
    names = [renamed]
    for task in ("OpenEnded_", "MultipleChoice_"):
        names.append(renamed.replace(task, ""))
    for candidate in dict.fromkeys(names):
        beside = files.join(folder, candidate)
        if candidate != name and files.exists(beside):
            return beside
    raise FormatError(
        f"there is no annotations file beside the questions (looked for {', '.join(names)})",
        where=questions,
        fix="give both: questions.json,annotations.json",
    )


def _read_pair(questions: str, annotations: str) -> Iterator[Sample | Reject]:
    answers = DiskMap()
    about: dict[str, Any] = {"questions": {}, "annotations": {}}
    rows_of = frozenset({"annotations"})
    for key, item in read_object(annotations, rows_of):
        if isinstance(item, Reject):
            yield item
        elif not isinstance(item, Row):
            about["annotations"][key] = item
        elif answers.add(str(item.value.get("question_id")), json.dumps([item.where, item.value])):
            error = DuplicateId(f"question {item.value.get('question_id')} is annotated twice")
            yield Reject.of(error, item.where, item.raw)
    rows_of = frozenset({"questions"})
    for key, item in read_object(questions, frozenset(), skip=rows_of):
        if not isinstance(item, Reject):
            about["questions"][key] = item
    subtype = about["questions"].get("data_subtype")
    first = True
    for key, item in read_object(questions, rows_of):
        if isinstance(item, Reject):
            yield item
        elif key == "questions" and isinstance(item, Row):
            found = answers.pop(str(item.value.get("question_id")))
            for sample in contract.parsed([item], partial(_joined, found=found, subtype=subtype)):
                if first and isinstance(sample, Sample):
                    sample.meta[_PAIR_MARK]["file"] = about
                    first = False
                yield sample
    for question_id, found in answers.items():
        where, row = json.loads(found)
        orphan = OneSidedConversation(f"the questions file has no question {question_id}")
        yield Reject.of(orphan, where, json.dumps(row, ensure_ascii=False), question_id)
    answers.close()


def _joined(row: Row, found: str | None, subtype: Any) -> Sample:
    if found is None:
        raise OneSidedConversation(f"question {row.value.get('question_id')} has no annotation")
    annotation = json.loads(found)[1]
    flat = dict(row.value)
    for key in _ANSWER_KEYS:
        if key in flat:
            raise FormatError(f"the question has a key '{key}' that belongs to its annotation")
        if key in annotation:
            flat[key] = annotation.pop(key)
    pair: dict[str, Any] = {}
    shared = {"question_id", "image_id"}
    pair["annotation"] = {
        k: v for k, v in annotation.items() if k not in shared or v != flat.get(k)
    }
    if "image_id" in flat and "image_id" not in annotation:
        pair["lacks_image_id"] = True
    if "image" not in flat:
        image_id = keys.require(flat, "image_id", (int, str), "a number or text")
        flat["image"] = pair["named"] = _usual_name(image_id, subtype)
    if _PAIR_MARK in flat:
        raise FormatError(f"the key '{_PAIR_MARK}' is reserved")
    sample = parse(Row(flat, row.where, row.raw, row.number))
    sample.meta[_PAIR_MARK] = pair
    return sample


def parse(row: Row) -> Sample:
    """One flat row.

    Raises:
        FormatError: a field is missing or of the wrong type.
        EmptyConversation: the question or the answer is empty.
    """
    value = row.value
    note: dict[str, Any] = {}
    fields.refuse_unseen(value, pictures=False)
    id_key = "question_id" if "question_id" in value else "id"
    sample_id = keys.take_id(row, note, id_key)
    note.pop("id", None)
    if id_key != "id":
        note.pop("no_id", None)
    question_key, image_key = "question", "image"
    if question_key not in value or image_key not in value:  # most rows use these names
        question_key, image_key = _first(value, _QUESTION_KEYS), _first(value, _IMAGE_KEYS)
        if (question_key, image_key) != ("question", "image"):
            note["keys"] = [question_key, image_key]
    question = keys.require(value, question_key, str, "text")
    answers = _answers(value, note)
    best = value.get("multiple_choice_answer")
    if best is not None and not isinstance(best, str):
        raise FormatError("'multiple_choice_answer' is not text")
    if best is None:
        best = Counter(answers).most_common(1)[0][0] if answers else ""
    given = {k: value[k] for k in _ANSWER_KEYS[3:] if k in value}
    note["given"] = given  # also when it is empty: the row said none of them
    if "kind" in value:
        note["kind"] = value["kind"]
    shown: tuple[Image, ...] = ()
    if image_key not in value and (path := _of_a_dish(value)) is not None:
        note["dish"] = True
        shown = (Image(path),)
    elif value.get(image_key) is None and note.get("answers") == "number":
        # Multiple-choice sets have questions without a picture.
        note["no_image"] = {image_key: None} if image_key in value else {}
    else:
        path = keys.require(value, image_key, str, "a path")
        if not path:
            raise FormatError(f"'{image_key}' is empty, not a path")
        shown = (Image(path),)
    meta = keys.take_meta(value, _KNOWN, MARK, note)
    meta["answers"] = answers
    kind = value.get("kind") or value.get("answer_type") or value.get("question_type")
    if isinstance(kind, str):
        meta["kind"] = kind
    asked: tuple[Part, ...] = (*shown, Text(question)) if question.strip() else ()
    said = (Text(best),) if best else ()
    turns = (Turn("user", asked), Turn("assistant", said))
    return contract.checked(Sample(sample_id, turns, row.where, meta))


def _of_a_dish(value: dict[str, Any]) -> str | None:
    """The picture of a row of FoodieQA's, which stands among what is said of the dish."""
    about = value.get("food_meta")
    path = about.get("food_file") if isinstance(about, dict) else None
    return path if isinstance(path, str) and path else None


def _first(value: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in value), keys[0])


def _answers(value: dict[str, Any], note: dict[str, Any]) -> list[str]:
    key = "answers" if "answers" in value else "answer" if "answer" in value else "label"
    given = value.get(key)
    choices = value.get("choices")
    as_text = False
    if isinstance(choices, list) and isinstance(given, str) and given not in choices:
        as_text = given.isascii() and given.isdecimal()
        given = int(given) if as_text else given
    if choices is not None and type(given) is int and isinstance(choices, list):
        if not 0 <= given < len(choices) or not isinstance(choices[given], str):
            raise FormatError(f"'{key}' is {given}, and there are {len(choices)} choices")
        note["answers"] = "number as text" if as_text else "number"
        note["answers_key"] = key
        return [choices[given]]
    if given is None and "multiple_choice_answer" in value:
        note["answers"] = "none"
        return [str(value["multiple_choice_answer"])]
    if isinstance(given, str):
        note["answers"] = "text"
        answers = [given]
    else:
        key = key if key in value else "answer"
        items = keys.require(value, key, list, "a list of answers")
        texts: list[Any] = [i.get("answer") if isinstance(i, dict) else i for i in items]
        if not all([isinstance(text, str) for text in texts]):
            raise FormatError(f"'{key}' holds something that is neither text nor has an 'answer'")
        if any([isinstance(item, dict) for item in items]):
            note["answers"] = [
                {k: v for k, v in item.items() if k != "answer"} if isinstance(item, dict) else None
                for item in items
            ]
        answers = texts
    if key != "answers":
        note["answers_key"] = key
    return answers


def _usual_name(image_id: int | str, subtype: Any) -> str:
    prefix = f"COCO_{subtype}_" if isinstance(subtype, str) and subtype else ""
    digits = str(image_id)
    return f"{prefix}{int(digits):012d}.jpg" if digits.isdecimal() else f"{digits}.jpg"


def render(sample: Sample) -> dict[str, Any]:
    """One flat row.

    Raises:
        FormatError: the sample is not one picture, one question, one answer.
    """
    match sample.turns:
        case (
            Turn("user", (Image() as image, Text(question))),
            Turn("assistant", (Text(answer),)),
        ):
            shown: str | None = keys.image_path(image)
        case (Turn("user", (Text(question),)), Turn("assistant", (Text(answer),))) if (
            keys.noted(sample, MARK).get("no_image") is not None
        ):
            shown = None
        case _:
            raise FormatError("the sample is not one picture, one question and one answer")
    note = keys.noted(sample, MARK)
    meta = {k: v for k, v in sample.meta.items() if k not in ("answers", "kind")}
    row: dict[str, Any] = {}
    generated = note.get("no_id") and sample.id.startswith("row-")
    if "question_id" not in meta and not generated:
        row["id"] = meta.pop("id", sample.id)
    question_key, image_key = note.get("keys", ("question", "image"))
    if not note.get("dish"):  # else it stands where it stood
        row |= note["no_image"] if shown is None else {image_key: shown}
    row[question_key] = question
    answers = sample.meta.get("answers") or [answer]
    row.update(_answers_row(answers, note, sample.meta.get("choices")))
    row.update(note.get("given", {} if note else {"multiple_choice_answer": answer}))
    if "kind" in note or (not note and "kind" in sample.meta):
        row["kind"] = note.get("kind", sample.meta.get("kind"))
    return keys.give_meta(row, meta, _KNOWN, MARK)


def _answers_row(answers: list[str], note: dict[str, Any], choices: Any) -> dict[str, Any]:
    key = note.get("answers_key", "answers")
    how = note.get("answers")
    if how in ("number", "number as text") and isinstance(choices, list) and answers[0] in choices:
        number = choices.index(answers[0])
        return {key: number if how == "number" else str(number)}
    if how == "none":
        return {}
    if how == "text" and len(answers) == 1:
        return {key: answers[0]}
    if isinstance(how, list) and len(how) == len(answers):
        pairs = zip(answers, how, strict=True)
        return {key: [a if extra is None else {"answer": a} | extra for a, extra in pairs]}
    return {key: answers}


def write(samples: Iterable[Sample], path: str, refuse: contract.Refuse | None = None) -> int:
    """JSON lines of flat rows where the path ends in `.jsonl`, else VQA's two files.

    Two files need a path with `questions` in its name, or two paths with a comma.
    """
    if files.suffix(path) in (".jsonl", ".ndjson"):
        return contract.write_json(contract.rendered(samples, render, refuse), path)
    questions, _, annotations = path.partition(",")
    name = files.base_name(questions)
    if not annotations:
        renamed = name.replace("questions", "annotations")
        if renamed == name:
            raise FormatError(
                "VQA needs two files, and the path names one without 'questions' in it",
                where=path,
                fix="write to x_questions.json, to questions.json,annotations.json, or to .jsonl",
            )
        annotations = files.join(files.parent(questions), renamed)
    about: dict[str, Any] = {}
    count = 0
    with ExitStack() as stack:
        outs = []
        for target, key in ((questions, "questions"), (annotations, "annotations")):
            temporary = stack.enter_context(replacing(target))
            out = stack.enter_context(open(temporary, "w", encoding="utf-8", newline="\n"))
            out.write(f'{{"{key}": [')
            outs.append((out, key))
        for *rows, header in contract.rendered(samples, _pair, refuse):
            about = about or header
            for (out, _), row in zip(outs, rows, strict=True):
                out.write((",\n" if count else "\n") + json.dumps(row, ensure_ascii=False))
            count += 1
        for out, key in outs:
            out.write("\n]")
            for name, value in about.get(key, {}).items():
                out.write(f",\n{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
            out.write("}\n")
    return count


def _pair(sample: Sample) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    flat = render(sample)
    pair = flat.pop(_PAIR_MARK, {})
    question = {k: v for k, v in flat.items() if k not in _ANSWER_KEYS}
    if "question_id" not in question:
        question["question_id"] = question.pop("id")
    if pair.get("named") == question["image"]:
        del question["image"]
    shared = ["question_id"] + ["image_id"] * (not pair.get("lacks_image_id"))
    annotation: dict[str, Any] = {k: question[k] for k in shared if k in question}
    annotation |= pair.get("annotation", {})
    annotation |= {k: flat[k] for k in _ANSWER_KEYS if k in flat}
    about = {key: dict(value) for key, value in pair.get("file", {}).items()}
    return question, annotation, about
