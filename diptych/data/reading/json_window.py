"""A window that moves over a stream of JSON text, value by value.

Memory is bounded by the longest value. A damaged value is passed by its brackets, or, when
those do not match, up to where the next one seems to begin.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, BinaryIO

from diptych.data.reading import files
from diptych.data.reading.strict_json import (
    DECODER,
    READING_ERRORS,
    check_text,
    explain,
    parse_json,
    vet,
)
from diptych.errors import FormatError

MAX_ROW_BYTES = 64 << 20
# A string up to its quote (or the end of its line: JSON strings hold no raw line ends), or a
# bracket. Possessive, so that megabytes of text take no backtracking.
_TOKEN = re.compile(r'"(?:[^"\\\n]++|\\.)*+(?P<open>"|\n|\Z)|(?P<bracket>[{}\[\]])')
_BETWEEN = re.compile(r"[\s,]*")
_BLANKS = {also: re.compile(rf"[ \t\r\n{also}]*") for also in ("", ",", "{")}
_SCALAR = re.compile(r"[^,\[\]{}\s\"][^,\]}\n]*")


class JsonWindow:
    """A position in a stream of UTF-8 text, and as much of the text as is needed.

    `LOST` stands for a value whose end cannot be told. `nested` says that values are read from
    an array inside an object, so that more may follow the array's end.
    """

    LOST = object()

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text = ""
        self._ended = False
        self._line = 1
        self._counted = 0
        self.position = 0
        self.nested = False
        self._more()
        self._text = self._text.removeprefix("\ufeff")

    @property
    def line(self) -> int:
        """Line of the current position, from 1."""
        self._line += self._text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def _more(self) -> bool:
        if self._ended:
            return False
        _ = self.line
        kept = self._text[self.position :]
        # Reading as much again as is kept makes the work on a long row linear, not quadratic.
        chunk = self._stream.read(max(files.CHUNK_BYTES, len(kept)))
        self._ended = not chunk
        self._text = kept + self._decode(chunk, final=self._ended)
        self.position = self._counted = 0
        return True

    def peek(self) -> str:
        """The character at the current position, or the empty string at the end."""
        while self.position >= len(self._text):
            if not self._more():
                return ""
        return self._text[self.position]

    def at_end(self) -> bool:
        """Whether all text is passed."""
        return not self.peek()

    def skip_space(self, also: str = "") -> None:
        """Pass white space and the character `also`, a comma or a brace."""
        blank = _BLANKS[also]
        while found := blank.match(self._text, self.position):
            self.position = found.end()
            if self.position < len(self._text) or not self._more():
                return

    def fence(self) -> re.Pattern[str] | None:
        """What the elements of an array begin with, judged by the first, which starts here.

        An indented line, or in an array without line ends the first key.
        """
        before = self._text[: self.position].rpartition("\n")
        if before[1] and not before[2].strip():
            return re.compile(f"\n{before[2]}{{")
        first_key = re.compile(r'\{\s*"[^"\\]+"').match(self._text, self.position)
        return re.compile(rf",\s*{re.escape(first_key[0])}\s*:") if first_key else None

    def rest(self) -> str:
        """The text that is left in the window."""
        return self._text[self.position :]

    def element(self, fence: re.Pattern[str] | None = None) -> tuple[int, str, Any]:
        """(line, raw text, value) of the JSON value here; passes it.

        The value is a FormatError when the text is no JSON, and `LOST` when it cannot even
        be told where it ends.
        """
        line = self.line
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.position)
                # A number at the edge of the window may go on beyond it.
                if end < len(self._text) or self._ended or not isinstance(value, int | float):
                    return self._take(line, end, value)
                self._more()
                continue
            except READING_ERRORS as caught:
                error = caught
            cut = self._end_by_brackets(fence)
            if cut is not None:
                return self._take(line, cut, error)
            if len(self._text) - self.position > MAX_ROW_BYTES or not self._more():
                break
        cut = self._next_element(fence, len(self._text))
        if cut is not None:
            return self._take(line, cut, error)
        raw, self.position = self._text[self.position :], len(self._text)
        while self._more():
            self.position = len(self._text)
        return line, raw, self.LOST

    def _take(self, line: int, end: int, value: Any) -> tuple[int, str, Any]:
        raw = self._text[self.position : end]
        self.position = end
        try:
            check_text(raw)
            if isinstance(value, Exception):
                # The window's message counts lines and columns from its own start.
                return line, raw, self._error_in(raw, line, value)
            vet(value, raw)
        except FormatError as error:
            shown = raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            return line, shown, error
        return line, raw, value

    @staticmethod
    def _error_in(raw: str, line: int, seen: Exception) -> FormatError:
        try:
            parse_json(raw, line)
        except FormatError as error:
            return error
        return explain(seen, line)

    def _end_by_brackets(self, fence: re.Pattern[str] | None) -> int | None:
        """End of the damaged value here, or None when the window does not show it."""
        text, start = self._text, self.position
        if text[start : start + 1] not in ("{", "["):
            return self._end_of_junk(fence)
        stack: list[str] = []
        for token in _TOKEN.finditer(text, start):
            bracket = token["bracket"]
            if bracket is None:
                continue
            if bracket in "{[":
                stack.append("}" if bracket == "{" else "]")
            elif stack.pop() != bracket:
                return self._next_element(fence, len(text))
            elif not stack:
                return self._believed(token.end(), fence)
        return None

    def _believed(self, end: int, fence: re.Pattern[str] | None) -> int | None:
        """`end`, if the array seems to go on or to close there, else the next element.

        A damaged value may seem to end early, inside its own lists; what comes next tells.
        """
        if fence is None:
            return end
        text = self._text
        after = _BETWEEN.match(text, end)
        next_start = after.end() if after else end
        if next_start + 1 >= len(text) and not self._ended:
            return None
        closes = text[next_start : next_start + 1] == "]"
        if closes and (self.nested or not text[next_start + 1 :].strip()):
            return end
        found = fence.search(text, end)
        if found is None:
            return end if self._ended or len(text) - end > MAX_ROW_BYTES else None
        return end if not closes and found.start() <= next_start else found.start() + 1

    def _end_of_junk(self, fence: re.Pattern[str] | None) -> int | None:
        """End of what begins like no row: the next element, or without a fence one word."""
        text, start = self._text, self.position
        if fence is not None:
            return self._next_element(fence, len(text))
        if text[start : start + 1] == '"':
            token = _TOKEN.match(text, start)
            return token.end() if token and (token["open"] or self._ended) else None
        scalar = _SCALAR.match(text, start)
        end = scalar.end() if scalar else start + 1
        return end if end < len(text) or self._ended else None

    def _next_element(self, fence: re.Pattern[str] | None, end: int) -> int | None:
        """Where the element after the damaged one here seems to start, before `end`."""
        found = fence.search(self._text, self.position + 1, end) if fence else None
        return found.start() + 1 if found else None
