"""JSON text that every reader accepts: no NaN, no Infinity.

Python writes such numbers as bare words, which are no JSON (RFC 8259, section 6) and which `jq`,
browsers and most languages refuse. Everything that Diptych writes for others goes through `dumps`:
answers of `--json`, metrics, results, reports.
"""

from __future__ import annotations

import json
import math
import numbers
from typing import Any

NOT_FINITE = "not_finite"
"""Key of the note that names the numbers for which null stands."""


def dumps(value: Any, **settings: Any) -> str:
    """JSON text of `value`; null stands for a number that is not finite.

    Where the value is an object, the note `not_finite` in it names each of those numbers by its
    path: `{"loss": null, "not_finite": {"loss": "NaN"}}`. The words are NaN, Infinity and
    -Infinity. Numbers of numpy are written as numbers.

    Args:
        settings: of `json.dumps`; without `default`, what JSON does not know is an error.
    """
    lost: dict[str, str] = {}
    plain = _plain(value, "", lost)
    if lost and isinstance(plain, dict):
        plain = {**plain, NOT_FINITE: {**plain.get(NOT_FINITE, {}), **lost}}
    return json.dumps(plain, **{"ensure_ascii": False, **settings, "allow_nan": False})


def _plain(value: Any, path: str, lost: dict[str, str]) -> Any:
    """`value` with null for what is not finite; `lost` receives the path and name of each."""
    if isinstance(value, dict):
        return {key: _plain(v, f"{path}.{key}" if path else str(key), lost)
                for key, v in value.items()}  # fmt: skip
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}[{number}]", lost) for number, v in enumerate(value)]
    if isinstance(value, numbers.Integral):
        return value if isinstance(value, int) else int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        lost[path] = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
        return None
    return value
