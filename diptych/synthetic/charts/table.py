"""Table: the numbers behind one chart, as they are displayed, and what of them can be seen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from diptych.synthetic.charts.topics import Scale


@dataclass(frozen=True, slots=True)
class Table:
    """One chart's content. Every answer is computed from it.

    Attributes:
        kind: stem of a file of `kinds/`.
        axis: what the categories are ("City").
        series: names of the columns; for one column, the measure.
        values: `values[series][category]`, rounded as displayed.
        scales: number format per series.
        ticks: axis ticks per series (scatter) or one tuple for all; empty where no axis is drawn.
        colours: names of colours, one per category, per series, or a single one (`colour_of`).
        colour_of: `category`, `series`, `all` or `none`.
        labelled: the numbers themselves stand in the picture.
        min_gap: smallest difference between two values of a series that the eye can see.
        order: as in Topic.
    """

    kind: str
    language: str
    title: str
    axis: str
    unit: str
    categories: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    scales: tuple[Scale, ...]
    ticks: tuple[tuple[float, ...], ...]
    colours: tuple[str, ...]
    colour_of: str
    labelled: bool
    min_gap: tuple[float, ...]
    order: str

    @property
    def has_axis(self) -> bool:
        """Whether values can be read against ticks."""
        return bool(self.ticks)

    def totals(self) -> tuple[float, ...]:
        """Sum over the series per category."""
        decimals = self.scales[0].decimals
        return tuple(round(sum(column), decimals) for column in zip(*self.values, strict=True))

    def text(self, series: int, category: int) -> str:
        """One value as displayed."""
        return self.scales[series].text(self.values[series][category])

    def digest(self) -> str:
        """SHA-256 of names and numbers, whatever their order or the chart that shows them."""
        cells = sorted(
            (category, name, self.scales[s].text(self.values[s][c]))
            for s, name in enumerate(self.series)
            for c, category in enumerate(self.categories)
        )
        return hashlib.sha256(json.dumps(cells, ensure_ascii=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `tables/<chart id>.json`, with every number as displayed too."""
        plain = asdict(self)
        plain["displayed"] = [
            [self.text(s, c) for c in range(len(self.categories))] for s in range(len(self.series))
        ]
        plain["digest"] = self.digest()
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Table:
        """The table that `to_dict` wrote."""
        fields = {k: v for k, v in plain.items() if k not in ("displayed", "digest")}
        fields["scales"] = tuple(Scale(**scale) for scale in fields["scales"])
        for name in ("categories", "series", "colours", "min_gap"):
            fields[name] = tuple(fields[name])
        for name in ("values", "ticks"):
            fields[name] = tuple(tuple(row) for row in fields[name])
        return cls(**fields)
