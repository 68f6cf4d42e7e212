"""VQA question and annotation files."""

from __future__ import annotations

from diptych import errors
from tests.e2e.faults.case import case
from tests.e2e.faulty_inputs import (
    DROP,
    annotation,
    question,
    vqa,
)


@case(
    "VQA question without annotation and the other way", good=1, rejects={"OneSidedConversation": 2}
)
def _(folder):
    return vqa(folder, [question(1), question(2)], [annotation(1), annotation(3)])


@case("VQA annotated twice", good=1, rejects={"DuplicateId": 1})
def _(folder):
    return vqa(folder, [question(1)], [annotation(1), annotation(1)])


@case("VQA asked twice", good=1, rejects={"OneSidedConversation": 1})
def _(folder):
    return vqa(folder, [question(1), question(1)], [annotation(1)])


@case("VQA fields of wrong types", good=1, rejects={"FormatError": 4, "EmptyConversation": 1})
def _(folder):
    questions = [
        question(1),
        question(2, question=None),
        question(3, image=5),
        question(4, question=""),
        question(5),
        question(6),
    ]
    answers = [annotation(n) for n in range(1, 5)]
    answers += [
        annotation(5, answers="?", multiple_choice_answer=3),
        annotation(6, answers=[{"a": 1}]),
    ]
    return vqa(folder, questions, answers)


@case("VQA without annotations file", raises=errors.FormatError, says="annotations")
def _(folder):
    path = vqa(folder, [question(1)], [annotation(1)])
    (folder / "v2_annotations.json").unlink()
    return path


@case(
    "VQA picture by its usual name is missing", rejects={"MissingImage": 1}, says="000000000007.jpg"
)
def _(folder):
    return vqa(folder, [question(7, image=DROP)], [annotation(7)])
