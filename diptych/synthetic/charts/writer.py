"""Writer: a language model writes topics, descriptions and questions; the table has the last word.

It is asked through an OpenAI-style `/v1/chat/completions` endpoint. Everything it says is
hostile until checked: replies are capped in size, parsed as JSON, checked field by field, and
a question is kept only when its declared operation gives the answer it claims.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from diptych.errors import WriterError
from diptych.synthetic.charts.operations import QUESTION_KIND, Unanswerable, answer
from diptych.synthetic.charts.questions import Question
from diptych.synthetic.charts.table import Table
from diptych.synthetic.charts.topics import Lists, Scale, Topic, lists

KEY_VARIABLE = "DIPTYCH_WRITER_KEY"
MAX_REPLY_BYTES = 1 << 20
_LANGUAGE = {"en": "English", "zh": "Simplified Chinese"}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Writer:
    """A language model behind an endpoint.

    Args:
        url: base URL (`http://host:8000` or `.../v1`) or the full `/chat/completions` URL.
        model: name that the endpoint knows.
        timeout_seconds: for one reply.
        num_retries: further tries after a failed connection, a 429 or a 5xx.

    The bearer key is read from the environment variable `DIPTYCH_WRITER_KEY`, never stored.
    """

    url: str
    model: str
    timeout_seconds: float = 60.0
    num_retries: int = 2

    @property
    def endpoint(self) -> str:
        """URL that is asked."""
        url = self.url.rstrip("/")
        if url.endswith("/chat/completions"):
            return url
        return f"{url}/chat/completions" if url.endswith("/v1") else f"{url}/v1/chat/completions"

    def complete(self, prompt: str) -> str:
        """The model's reply to one prompt.

        Raises:
            WriterError: no connection, an HTTP error, a reply over 1 MiB, or one that is not in
                the shape of a chat completion, after `num_retries` further tries.
        """
        import httpx

        headers = {}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        failure = ""
        for attempt in range(self.num_retries + 1):
            if attempt:
                time.sleep(min(0.2 * 2**attempt, 5.0))
            try:
                with httpx.stream(
                    "POST", self.endpoint, json=body, headers=headers, timeout=self.timeout_seconds
                ) as reply:
                    if reply.status_code == 429 or reply.status_code >= 500:
                        failure = f"HTTP {reply.status_code}"
                        continue
                    if reply.status_code != 200:
                        raise self._error(f"HTTP {reply.status_code}")
                    return _content(self._read(reply))
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failure = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise self._error("the reply is not a chat completion") from error
        raise self._error(failure)

    def _read(self, reply: Any) -> bytes:
        data = b""
        for piece in reply.iter_bytes():
            data += piece
            if len(data) > MAX_REPLY_BYTES:
                raise self._error(f"the reply is larger than {MAX_REPLY_BYTES:,} bytes")
        return data

    def _error(self, what: str) -> WriterError:
        return WriterError(
            f"the writer '{self.model}' failed: {what}",
            where=self.endpoint,
            fix=f"check --writer and --model, and {KEY_VARIABLE} where the endpoint wants a key",
        )

    def topics(self, language: str, number: int, discarded: Counter[str]) -> Lists:
        """Up to `number` topics, asked for ten at a time; the bad ones counted in `discarded`."""
        kept: dict[tuple[str, ...], Topic] = {}
        for start in range(0, number, 10):
            prompt = TOPIC_PROMPT.format(
                number=min(10, number - start), language=_LANGUAGE[language],
                used=json.dumps([t.titles[0] for t in kept.values()], ensure_ascii=False),
            )  # fmt: skip
            for row in _rows(self.complete(prompt), discarded, "topic"):
                topic = _topic(row, language)
                if topic is None:
                    discarded["topic_malformed"] += 1
                elif topic.titles in kept:
                    discarded["topic_repeated"] += 1
                else:
                    kept[topic.titles] = topic
        return Lists(tuple(kept.values()), lists(language).series)

    def describe(self, table: Table, discarded: Counter[str]) -> str | None:
        """A description that names every category and value and no other number; else None."""
        prompt = DESCRIPTION_PROMPT.format(language=_LANGUAGE[table.language], table=_shown(table))
        text = " ".join(self.complete(prompt).split())
        problem = _description_problem(table, text)
        if problem:
            discarded[problem] += 1
            return None
        return text

    def ask(self, table: Table, discarded: Counter[str], number: int = 8) -> list[Question]:
        """The model's questions whose answers the table confirms."""
        prompt = QUESTION_PROMPT.format(
            number=number, language=_LANGUAGE[table.language], table=_shown(table)
        )
        kept: dict[str, Question] = {}
        for row in _rows(self.complete(prompt), discarded, "question"):
            try:
                question = _question(table, row)
            except Unanswerable as problem:
                discarded[f"question_{problem.reason}"] += 1
                continue
            if question.text in kept:
                discarded["question_repeated"] += 1
            else:
                kept[question.text] = question
        return list(kept.values())[:number]


TOPIC_PROMPT = """Invent {number} different topics for business or everyday charts, in {language}.
Reply with a JSON list only. Each item:
{{"title": "short title", "measure": "what is measured, one or two words", "unit": "mm",
"axis": "what the categories are, one word", "categories": ["6 to 10 short names"],
"low": 10, "high": 90, "decimals": 0, "suffix": "", "order": "any, time or stages",
"share": true if the values are parts of a whole}}
"low" and "high" bound the displayed values (low > 0); "suffix" is %, k, M or empty.
Not again: {used}"""

DESCRIPTION_PROMPT = """Describe this chart in one or two sentences of {language}. State its type,
its title, and every category with its value exactly as displayed. Use no other numbers.
Reply with the description only.
{table}"""

QUESTION_PROMPT = """Write {number} different questions in {language} about this chart, answerable
from its picture alone. Reply with a JSON list only. Each item:
{{"question": "...", "answer": "...", "operation": {{...}}}}
The operation declares how the answer follows from the table; it is one of
{{"op": "value", "category": A, "series": S}}, {{"op": "max" or "min", "series": S}},
{{"op": "compare", "categories": [A, B], "want": "larger" or "smaller", "series": S}},
{{"op": "sum" or "difference", "categories": [A, B], "series": S}},
{{"op": "count", "of": "categories" or "series"}}, {{"op": "chart_type"}},
{{"op": "colour", "name": A}}, {{"op": "greater", "categories": [A, B], "series": S}} (yes or no).
Leave "series" out where the chart has one. Write numbers as displayed; name the categories.
{table}"""


def _content(data: bytes) -> str:
    text = json.loads(data)["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is not text")
    return text


def _shown(table: Table) -> str:
    plain = table.to_dict()
    keys = ("kind", "title", "unit", "categories", "series", "displayed", "colours")
    return json.dumps({key: plain[key] for key in keys}, ensure_ascii=False)


def _rows(text: str, discarded: Counter[str], what: str) -> list[dict[str, Any]]:
    """The objects of a JSON list, with or without a code fence around it."""
    start, end = text.find("["), text.rfind("]")
    try:
        rows = json.loads(text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        discarded[f"{what}_not_json"] += 1
        return []
    good = [row for row in rows[:100] if isinstance(row, dict)]
    discarded[f"{what}_malformed"] += len(rows[:100]) - len(good)
    return good


def _line(value: Any, language: str, most: int) -> str | None:
    """A short line of text that the fonts can draw, or None."""
    from diptych.synthetic.charts.canvas import drawable

    if not isinstance(value, str):
        return None
    text = " ".join(value.split())
    return text if 0 < len(text) <= most and drawable(text, language) else None


def _topic(row: dict[str, Any], language: str) -> Topic | None:
    wide = 1 if language == "en" else 2  # a Chinese character takes two letters' room
    title = _line(row.get("title"), language, 44 // wide)
    measure = _line(row.get("measure"), language, 16 // wide)
    axis = _line(row.get("axis"), language, 14 // wide)
    names = row.get("categories")
    if not (title and measure and axis and isinstance(names, list) and 6 <= len(names) <= 12):
        return None
    categories = [_line(name, language, 13 // wide) for name in names]
    low, high, decimals = row.get("low"), row.get("high"), row.get("decimals", 0)
    if None in categories or len(set(categories)) < len(categories):
        return None
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    if not (0 < low < high <= 99_000 and decimals in (0, 1, 2) and high * 10**decimals >= 20):
        return None
    unit, suffix = row.get("unit") or "", row.get("suffix") or ""
    if suffix not in ("", "%", "k", "M", "万", "亿") or (suffix == "%" and high > 100):
        return None
    if unit and not (unit := _line(unit, language, 8) or ""):
        return None
    order = row.get("order", "any")
    if order not in ("any", "time", "stages"):
        return None
    scale = Scale(float(low), float(high), decimals, suffix, thousands=high >= 1000)
    return Topic(
        (title,), measure, unit if not suffix else "", axis, tuple(map(str, categories)), (scale,),
        order, row.get("share") is True and order == "any",
    )  # fmt: skip


def _description_problem(table: Table, text: str) -> str | None:
    if not 20 <= len(text) <= 1000:
        return "description_malformed"
    left = text
    shown = [
        table.text(s, c) for s in range(len(table.series)) for c in range(len(table.categories))
    ]
    for name in sorted((table.title, *table.categories, *table.series), key=len, reverse=True):
        if name in table.categories and name not in text:
            return "description_misses_category"
        left = left.replace(name, " ")
    numbers = Counter(_NUMBER.findall(left))
    if not table.labelled and not table.has_axis:
        return "description_not_visible" if numbers else None
    wanted = Counter(number for value in shown for number in _NUMBER.findall(value))
    if set(numbers) - set(wanted):
        return "description_wrong_number"
    if set(wanted) - set(numbers):
        return "description_misses_value"
    return None


def _question(table: Table, row: dict[str, Any]) -> Question:
    text, claimed, operation = row.get("question"), row.get("answer"), row.get("operation")
    if not isinstance(text, str) or not 5 <= len(text.strip()) <= 200 or "<" in text:
        raise Unanswerable("malformed")
    if not isinstance(claimed, str | int | float) or not isinstance(operation, dict):
        raise Unanswerable("malformed")
    found = answer(table, operation)
    if str(claimed).strip().casefold().rstrip(".。") != found.casefold():
        raise Unanswerable("wrong_answer")
    if len(found) > 40:
        raise Unanswerable("malformed")
    text = " ".join(text.split())
    named = [operation.get("category"), operation.get("name"), *operation.get("categories", [])]
    series = operation.get("series")
    named += series if isinstance(series, list) else [series]
    if any(isinstance(name, str) and name.casefold() not in text.casefold() for name in named):
        raise Unanswerable("names_missing")
    return Question(text, found, QUESTION_KIND[operation["op"]], operation)
