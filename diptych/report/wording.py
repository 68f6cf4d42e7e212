"""Numbers as a reader wants them: percent, points, counts, durations, sizes.

Everything here takes plain numbers and gives plain text; `None` becomes an en dash, so a figure
that was not measured shows as not measured.
"""

from __future__ import annotations

NO_BREAK = "\u00a0"
MINUS = "\u2212"
NOTHING = "\u2013"


def percent(share: float | None, digits: int = 0) -> str:
    """A share in 0..1 as `78 %`; small shares keep a digit so that they do not read as zero."""
    if share is None:
        return NOTHING
    value = 100 * share
    if digits == 0 and 0 < abs(value) < 0.95:
        digits = 1 if abs(value) >= 0.05 else 2
    return f"{_signed(value, digits)}{NO_BREAK}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, always with its sign: `+49`."""
    if difference is None:
        return NOTHING
    written = _signed(100 * difference, 0)
    return written if written == "0" or written.startswith(MINUS) else f"+{written}"


def interval(low: float | None, high: float | None) -> str:
    """`74 to 81 %`, both ends of an interval in 0..1."""
    if low is None or high is None:
        return NOTHING
    return f"{_signed(100 * low, 0)} to {_signed(100 * high, 0)}{NO_BREAK}%"


def count(number: float | None) -> str:
    """A whole number with thin groups: `134 515 008` reads better than `134515008`."""
    if number is None:
        return NOTHING
    return f"{round(number):,}".replace(",", "\u202f").replace("-", MINUS)


def short_count(number: float | None) -> str:
    """A count to three digits: `134 M`, `2.1 k`."""
    if number is None:
        return NOTHING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999 600 must become 1.0 M, not 1000 k.
        if abs(number) >= size * 0.9995:
            return f"{_three_digits(number / size)}{NO_BREAK}{letter}"
    return _three_digits(number) if number != int(number) else f"{_signed(number, 0)}"


def duration(seconds: float | None) -> str:
    """`42 s`, `6 min 12 s`, `3 h 05 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NO_BREAK}s"
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK}min {whole % 60:02d}{NO_BREAK}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{NO_BREAK}h {minutes % 60:02d}{NO_BREAK}min"


def rough_duration(seconds: float) -> str:
    """A duration for a sentence: `40 seconds`, `6 minutes`, `3.5 hours`."""
    if seconds < 90:
        return _plural(max(1, round(seconds)), "second")
    if seconds < 5400:
        return _plural(round(seconds / 60), "minute")
    hours = round(seconds / 3600, 1)
    return f"{hours:g}{NO_BREAK}hours"


def size(num_bytes: float | None) -> str:
    """Bytes in decimal units, as memory and disks are sold: `3.2 GB`."""
    if num_bytes is None:
        return NOTHING
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(num_bytes) >= unit * 0.9995:
            return f"{_three_digits(num_bytes / unit)}{NO_BREAK}{name}"
    return f"{num_bytes:.0f}{NO_BREAK}bytes"


def plain(number: float | None) -> str:
    """Any figure to three significant digits: `0.421`, `1.6e-5`, `12 300`."""
    if number is None:
        return NOTHING
    if number == 0:
        return "0"
    if abs(number) >= 10_000:
        return count(number) if abs(number) < 1e6 else short_count(number)
    if abs(number) < 0.001:
        return scientific(number)
    return f"{number:.3g}".replace("-", MINUS)


def scientific(number: float) -> str:
    """A figure in one notation for a whole axis: `1e-3`, `7.5e-4`, `0`."""
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)


def probability(p: float | None) -> str:
    """A p-value as papers write it: `p < 0.001` or `p = 0.03`."""
    if p is None:
        return NOTHING
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    text = _signed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 else MINUS + text[1:]) if text.startswith("-") else text


def _plural(number: int, noun: str) -> str:
    return f"{number}{NO_BREAK}{noun}" + ("" if number == 1 else "s")
