"""The page as a file: complete, closed to the network, safe against what a run's files hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych import parts
from diptych.errors import InputError
from diptych.report import page
from diptych.report.section import FOLDER

FILES = (
    "recipe.json",
    "environment.json",
    "parameters.json",
    "ledger.json",
    "evaluation.json",
    "timings.json",
    "metrics.jsonl",
    "records_before.jsonl",
    "records_after.jsonl",
    "records_blind.jsonl",
)
VOID = {"meta", "link", "img", "br", "input"}


class Outline(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html(built) -> str:
    return page.render(built)


@pytest.fixture(scope="module")
def outline(html) -> Outline:
    return Outline(html)


def test_write_gives_one_complete_file(run):
    before = set(run.iterdir())
    target = page.write(run)
    assert target == run / "report.html"
    assert set(run.iterdir()) - before == {target}
    assert target.stat().st_size < 5_000_000
    html = target.read_text(encoding="utf-8")
    ids = [attrs["id"] for tag, attrs in Outline(html).elements if tag == "section"]
    always = [n for n in parts.names(FOLDER) if not hasattr(parts.find(FOLDER, n), "OPTIONAL")]
    assert sorted(ids) == always
    assert "Not in this report" not in html


def test_write_is_deterministic(run):
    first = page.write(run).read_bytes()
    assert page.write(run).read_bytes() == first


def test_headline_says_what_happened(html):
    heading = re.sub(r"<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", html, re.S)[1])
    assert heading.replace("\u00a0", " ") == (
        "After 6 minutes of training, the model answers 79 % of unseen questions correctly, "
        "49 points above the majority answer."
    )


def test_no_folder_is_a_named_error(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        page.write(tmp_path / "nowhere")


def test_nothing_points_outside(outline):
    for tag, attrs in outline.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag


def test_policy_admits_exactly_the_inline_style_and_script(html, outline):
    policy = next(
        attrs["content"]
        for tag, attrs in outline.elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_words_stay_words(html, outline, fake_run):
    assert "<script>alert" not in html and "<img src=x" not in html
    assert [tag for tag, _ in outline.elements].count("script") == 2
    text = "".join(outline.text)
    for words in fake_run.HOSTILE.values():
        shown = words.translate(page._CONTROL_PICTURES).encode("utf-8", "replace").decode()
        assert f"Q {shown}" in text.encode("utf-8", "replace").decode()
    assert "{{ 7 * 7 }}" in text


def test_stage_name_cannot_end_the_script_element(run):
    row = {"stage": "</script><b>", "step": 1, "loss": 1.0, "losses": {"</script>": 1, "b": 2}}
    lines = [json.dumps({**row, "step": step}) for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    html = page.render(run)
    block = re.search(r'<script type="application/json" id="hover">(.*?)</script>', html, re.S)[1]
    names = [line["name"] for line in json.loads(block)[0]["lines"]]
    assert names == ["loss", "</script>", "b"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["absent", "cut", "wrong type", "empty"])
def test_a_missing_or_damaged_file_is_named_and_the_rest_stands(run, name, damage):
    path = run / name
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "wrong type":
        path.write_text("[1, 2]")
    elif damage == "empty":
        path.write_text("")
    text = "".join(Outline(page.render(run)).text)
    assert name in text


def test_an_empty_folder_still_gives_a_page(tmp_path):
    html = page.write(tmp_path).read_text()
    outline = Outline(html)
    assert "nobody has tested it yet" in html
    assert [attrs.get("id") for tag, attrs in outline.elements if tag == "section"] == ["left-out"]
    for name in ("evaluation.json", "metrics.jsonl", "ledger.json"):
        assert f"{name} is not in the run folder" in html


_KEYS = st.sampled_from(
    [
        "name",
        "parts",
        "stages",
        "parameters",
        "trainable",
        "learning_rate",
        "group",
        "share",
        "loss",
        "losses",
        "step",
        "stage",
        "score",
        "low",
        "high",
        "n",
        "before",
        "after",
        "blind",
        "majority",
        "by_kind",
        "text",
        "difference",
        "images",
        "image",
        "id",
        "question",
        "truth",
        "output",
        "kind",
        "read",
        "used",
        "rejected",
        "truncated",
        "tokens",
        "examples",
        "phases",
        "seconds",
        "command",
        "model",
        "vision_encoder",
        "connector",
        "tokens_per_image",
        "perplexity_before",
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["</script>", "\ud800", "../..", "/etc", "\x00", "align"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=16,
)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values=st.lists(st.dictionaries(_KEYS, _VALUES, max_size=8), min_size=10, max_size=10))
def test_any_json_gives_a_well_formed_page(tmp_path, values):
    for name, value in zip(FILES, values, strict=True):
        lines = [value, value] if name.endswith(".jsonl") else [value]
        (tmp_path / name).write_text("\n".join(json.dumps(line) for line in lines))
    Outline(page.render(tmp_path))
