"""Fields that carry meaning for other readers are obeyed, refused by name, or counted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from diptych.data import format as formats
from diptych.data.reading.fields import unread
from diptych.data.reading.markers import MARKERS
from diptych.data.reading.rows import Row
from diptych.data.sample import Image, Text
from diptych.errors import DataError, FormatError, MarkerMismatch, OneSidedConversation

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def parse(row, format=None):
    row = json.loads(json.dumps(row))
    format = format or ("messages" if "messages" in row else "llava")
    sample = formats.find(format).parse(Row(row, "file:1"))
    assert formats.find(format).render(sample) == row, "written back as it was"
    return sample


def refused(row, error: type[DataError], says: str):
    format = "messages" if "messages" in row else "llava"
    with pytest.raises(error) as caught:
        formats.find(format).parse(Row(row, "file:1"))
    assert says in caught.value.what


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize("turns", [{"messages": [ASK, SAY]}, {"conversations": TALK}])
def test_system_words_beside_the_turns_are_the_first_turn(key, turns):
    sample = parse({"id": "1", key: "Be brief.", **turns})
    assert [(t.role, t.text) for t in sample.turns][:2] == [("system", "Be brief."), ("user", "q")]
    assert not unread(sample)
    assert len(parse({"id": "1", key: "", **turns}).turns) == 2
    assert len(parse({"id": "1", key: None, **turns}).turns) == 2


def test_system_words_in_two_places_are_refused():
    refused({"system": "a", "system_prompt": "b", "messages": [ASK, SAY]}, FormatError, "both")
    twice = [{"role": "system", "content": "a"}, ASK, SAY]
    refused({"system": "b", "messages": twice}, FormatError, "first message")
    refused({"system": ["b"], "messages": [ASK, SAY]}, FormatError, "no text")


@pytest.mark.parametrize(
    ("mark", "learned"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"loss": False}, False), ({"loss_mask": 0}, False),
        ({"train": False}, False), ({"weight": 1}, True), ({"loss": True}, True), ({"weight": None}, True),
        ({"name": "kim"}, True), ({"weight": 1, "loss": False}, False),
    ],
)  # fmt: skip
def test_turns_that_are_marked_are_not_learned(mark, learned):
    turns = [ASK, {**SAY, **mark}, ASK, SAY]
    assert [t.learn for t in parse({"messages": turns}).turns] == [True, learned, True, True]
    talk = [TALK[0], {**TALK[1], **mark}, *TALK]
    assert [t.learn for t in parse({"conversations": talk}).turns] == [True, learned, True, True]


def test_marks_that_cannot_be_followed_are_refused():
    refused({"messages": [ASK, {**SAY, "weight": 0.5}]}, FormatError, "only 0 and 1")
    refused({"messages": [ASK, {**SAY, "weight": "0"}]}, FormatError, "only 0 and 1")
    refused({"messages": [ASK, {**SAY, "weight": 0}]}, OneSidedConversation, "not to be learned")
    refused({"weight": 0, "messages": [ASK, SAY]}, FormatError, "not to be learned")
    refused({"conversations": TALK, "loss": False}, FormatError, "not to be learned")
    refused({"messages": [ASK, {**SAY, "tool_calls": [{}]}]}, FormatError, "tool_calls")
    refused({"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}, FormatError, "reasoning")


def test_unlearned_turns_survive_other_formats():
    sample = parse({"id": "1", "conversations": [TALK[0], {**TALK[1], "loss": False}, *TALK]})
    row = formats.find("messages").render(sample)
    assert row["messages"][1]["weight"] == 0
    again = formats.find("messages").parse(Row(row, "file:1"))
    assert [t.learn for t in again.turns] == [True, False, True, True]


@pytest.mark.parametrize(
    "images", [{"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}]
)
def test_pictures_beside_messages_are_bound(images):
    first = parse({"messages": [ASK, SAY], **images})
    assert first.turns[0].parts == (Image("a.png"), Text("q"))
    for marker in MARKERS:
        sample = parse({"messages": [{**ASK, "content": f"see {marker} here"}, SAY], **images})
        assert sample.turns[0].parts == (Text("see "), Image("a.png"), Text(" here")), marker
    typed = [{"type": "text", "text": "see "}, {"type": "image"}]
    sample = parse({"messages": [{**ASK, "content": typed}, SAY], **images})
    assert sample.turns[0].parts == (Text("see "), Image("a.png"))


def test_the_index_of_a_part_names_its_picture():
    parts = [
        {"type": "image", "index": 1},
        {"type": "text", "text": "q"},
        {"type": "image", "index": 0},
    ]
    row = {"messages": [{**ASK, "content": parts}, SAY], "images": ["a.png", "b.png"]}
    assert [i.path for i in parse(row).images()] == ["b.png", "a.png"]
    refused({**row, "images": ["a.png"]}, FormatError, "index 1")
    refused({**row, "images": ["a.png", "b.png", "c.png"]}, MarkerMismatch, "image 3 of 3")


def test_xtuner_marks_the_place_in_the_text():
    def shown(*names):
        return [{"type": "image_url", "image_url": {"url": n, "image_wh": [4, 4]}} for n in names]

    text = {"type": "text", "text": "A <IMG_CONTEXT> or <IMG_CONTEXT>?"}
    row = {"messages": [{**ASK, "content": [*shown("a.png", "b.png"), text]}, SAY]}
    parts = parse(row).turns[0].parts
    assert parts == (Text("A "), Image("a.png"), Text(" or "), Image("b.png"), Text("?"))
    row = {"messages": [{**ASK, "content": [*shown("a.png"), text]}, SAY]}
    refused(row, MarkerMismatch, "2 <IMG_CONTEXT> markers and 1 images")


@pytest.mark.parametrize("turns", [{"messages": [ASK, SAY]}, {"conversations": TALK}])
def test_what_would_be_passed_over_is_refused(turns):
    refused({**turns, "image_path": "a.png"}, FormatError, "image_path")
    refused({**turns, "videos": ["a.mp4"]}, FormatError, "video")
    refused({**turns, "audio": "a.wav"}, FormatError, "audio")
    refused({**turns, "image": "a.png", "images": ["b.png"]}, FormatError, "both")
    parse({**turns, "videos": [], "audio": None, "image_path": ""})


def test_what_is_not_followed_is_named():
    sample = parse(
        {
            "messages": [{**ASK, "weight": 1, "name": "kim"}, {**SAY, "weight": 1}],
            "tools": "[{}]", "objects": {"bbox": []}, "score": 3, "kind": "colour", "notes": "",
        }
    )  # fmt: skip
    assert unread(sample) == [
        "column 'tools' is not followed (tool definitions)",
        "column 'objects' is not followed (boxes of things in the picture)",
        "column 'score' is not followed",
        "'weight' of a turn that is no answer is not followed",
        "key 'name' of a turn is not followed",
    ]


def test_numbers_of_answers_and_other_names_of_questions():
    row = {"question": "q", "choices": ["x", "y"], "answer": 1, "image": None}
    sample = parse(row, "vqa")
    assert (
        sample.answer == "y" and not list(sample.images()) and sample.meta["choices"] == ["x", "y"]
    )
    with pytest.raises(FormatError, match="2 choices"):
        formats.find("vqa").parse(Row({**row, "answer": 2}, "file:1"))
    with pytest.raises(FormatError, match="'image' is null"):
        formats.find("vqa").parse(Row({"question": "q", "answer": "y", "image": None}, "file:1"))
    chart = parse({"imgname": "a.png", "query": "q", "label": ["3", "3", "4"]}, "vqa")
    assert chart.answer == "3" and [i.path for i in chart.images()] == ["a.png"]


def test_whether_a_turn_is_learned_is_content_and_may_be_edited():
    row = {"messages": [ASK, {**SAY, "weight": 0, "name": "kim"}, ASK, {**SAY, "weight": 1}]}
    sample = parse(row)
    first, second, third, fourth = sample.turns
    swapped = replace(
        sample, turns=(first, replace(second, learn=True), third, replace(fourth, learn=False))
    )
    turns = formats.find("messages").render(swapped)["messages"]
    assert "weight" not in turns[1] and turns[1]["name"] == "kim" and turns[3]["weight"] == 0
    cut = replace(sample, turns=(third, fourth))
    assert formats.find("messages").render(cut)["messages"][1].get("weight", 1) == 1
    again = formats.find("llava").render(sample)
    again["conversations"][1].pop("weight")
    again["conversations"][3]["weight"] = 0
    back = formats.find("messages").render(formats.find("llava").parse(Row(again, "file:1")))
    learned = formats.find("messages").parse(Row(back, "file:1")).turns
    assert [t.learn for t in learned] == [True, True, True, False]


def test_captions_and_questions_follow_the_same_rules():
    for format, row in (
        ("captions", {"image": "a.png", "caption": "x"}),
        ("vqa", {"image": "a.png", "question": "q", "answers": ["x"]}),
    ):
        parse = formats.find(format).parse
        for more in ({"weight": 0}, {"loss": False}, {"video": "v.mp4"}):
            with pytest.raises(FormatError):
                parse(Row({**row, **more}, "file:1"))
        assert unread(parse(Row({**row, "system": "s"}, "file:1"))) == [
            "column 'system' is not followed"
        ]


def test_markers_without_pictures():
    marked = [{**ASK, "content": "<image>What?"}, SAY]
    for images in ([], None, ""):
        refused({"messages": marked, "images": images}, MarkerMismatch, "list of images is empty")
    plain = parse({"messages": marked})
    assert plain.turns[0].parts == (Text("<image>What?"),)
    assert unread(plain) == ["'<image>' in a text is read as the characters that it is"]


def test_numbered_markers():
    row = {
        "messages": [{**ASK, "content": "<|image_2|> or <|image_1|>?"}, SAY], "images": ["a.png", "b.png"],
    }  # fmt: skip
    assert [i.path for i in parse(row).images()] == ["b.png", "a.png"]
    refused({**row, "images": ["a.png"]}, FormatError, "index 1")
    refused({**row, "images": ["a.png", "b.png", "c.png"]}, MarkerMismatch, "image 3")


def test_keys_of_parts_are_named():
    parts = [
        {"type": "image", "image": "a.png", "bbox": [1, 2, 3, 4]},
        {"type": "text", "text": "q", "lang": "en"},
    ]
    shown = [
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "text", "text": "<IMG_CONTEXT>q"},
    ]
    assert unread(parse({"messages": [{**ASK, "content": parts}, SAY]})) == [
        "key 'bbox' of a part is not followed", "key 'lang' of a part is not followed",
    ]  # fmt: skip
    assert unread(parse({"messages": [{**ASK, "content": shown}, SAY]})) == [
        "key 'detail' of a part is not followed"
    ]
