"""Check: read a data set once and say what is in it and what is wrong with it.

It is the pass that training makes before it starts (`diptych.data.checking.examine`), with the
findings counted instead of stored. `Report.fix` writes the good rows and keeps the others
in a reject file, each with its reason and its text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from diptych.data import format as formats
from diptych.data import source as sources
from diptych.data.checking.examine import REPEATED_ID, Examined, Measure, Verify, examine
from diptych.data.reading import files
from diptych.data.reading.disk_map import DiskMap
from diptych.data.reading.ledger import MAX_EXAMPLES, Ledger, RejectFile
from diptych.data.reading.rows import Reject
from diptych.data.sample import Sample
from diptych.data.source import Source, locate
from diptych.errors import DataError
from diptych.progress import Progress


class Counts(Protocol):
    """A measure that also knows the words (`diptych.data.checking.token_counter`)."""

    def __call__(self, sample: Sample) -> tuple[int, ...]: ...

    def reserved(self, sample: Sample) -> list[tuple[str, bool]]: ...

    def notes(self) -> list[str]: ...


@dataclass
class Spread:
    """How a whole number is distributed over samples."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[value] += 1

    def quantile(self, share: float) -> int:
        """The smallest value that at least this share of all does not exceed."""
        needed, seen = share * self.counts.total(), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= needed:
                return value
        return 0

    def to_dict(self) -> dict[str, int]:
        """Smallest, median, 95th percentile and largest value; {} without any."""
        if not self.counts:
            return {}
        shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        return {name: self.quantile(share) for name, share in shares.items()}


@dataclass
class Report:
    """What a data set holds.

    Attributes:
        source: what the path named.
        ledger: rows by what became of them.
        rejects: every row that is not used, with its text.
        num_images: pictures that good samples refer to; `num_distinct_images` by content.
        widths, heights: of distinct pictures, in pixels.
        turns, images_per_sample, tokens: per good sample; `tokens` only with a measure.
        duplicate_images: (name, name) of pictures with equal content; the first few.
        duplicate_samples: (place, place) of samples that say the same about the same
            pictures; the first few. Duplicates are used: they are named, not rejected.
        reserved: (reserved word in an answer, whether it is one token there) -> how often.
        template_notes: where the chat template makes training and asking differ.
    """

    source: Source
    ledger: Ledger = field(default_factory=Ledger)
    rejects: list[Reject] = field(default_factory=list)
    num_images: int = 0
    num_distinct_images: int = 0
    num_image_bytes: int = 0
    num_duplicate_images: int = 0
    num_duplicate_samples: int = 0
    num_text_only: int = 0
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    turns: Spread = field(default_factory=Spread)
    images_per_sample: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    duplicate_images: list[tuple[str, str]] = field(default_factory=list)
    duplicate_samples: list[tuple[str, str]] = field(default_factory=list)
    bad_numbers: set[int] = field(default_factory=set, repr=False)
    reserved: Counter[tuple[str, bool]] = field(default_factory=Counter)
    template_notes: list[str] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Good samples."""
        return self.ledger.num_used + self.ledger.num_truncated

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return {
            "format": self.source.format,
            "rows": self.ledger.num_read,
            "samples": self.num_samples,
            "images": self.num_images,
            "distinct_images": self.num_distinct_images,
            "image_bytes": self.num_image_bytes,
            "text_only": self.num_text_only,
            "supervised_tokens": self.ledger.num_supervised_tokens,
            "truncated": {
                "samples": self.ledger.num_truncated,
                "tokens": self.ledger.num_cut_tokens,
            },
            "width": self.widths.to_dict(),
            "height": self.heights.to_dict(),
            "turns": self.turns.to_dict(),
            "images_per_sample": self.images_per_sample.to_dict(),
            "tokens": self.tokens.to_dict(),
            "repeated_ids": self.ledger.notes.get(REPEATED_ID, 0),
            "notes": dict(self.ledger.notes),
            "reserved_words": [
                {"word": word, "single_token": is_token, "count": count}
                for (word, is_token), count in self.reserved.most_common()
            ],
            "template_notes": self.template_notes,
            "duplicate_images": self.num_duplicate_images,
            "duplicate_samples": self.num_duplicate_samples,
            "duplicate_image_examples": [list(pair) for pair in self.duplicate_images],
            "duplicate_sample_examples": [list(pair) for pair in self.duplicate_samples],
            "rejects": [
                {"where": r.where, "id": r.id, "error": r.error, "message": r.message}
                for r in self.rejects
            ],
        }

    def table(self) -> Any:
        """The report as rich tables: what is there, and each kind of fault with examples."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table as RichTable

        facts = RichTable(title="Data", show_header=False)
        facts.add_column("what")
        facts.add_column("how many")
        for name, value in self._facts():
            facts.add_row(name, escape(value))
        if not self.rejects:
            return facts
        faults = RichTable(title="Rejected rows")
        faults.add_column("error")
        faults.add_column("rows", justify="right")
        faults.add_column("first places", overflow="fold")
        for name, fault in sorted(self.ledger.rejected.items(), key=lambda f: -f[1].count):
            lines = [f"{e['where']}: {e['message']}" for e in fault.examples]
            more = fault.count - len(lines)
            lines += [f"and {more:,} more"] if more else []
            faults.add_row(name, f"{fault.count:,}", escape("\n".join(lines)))
        return Group(facts, faults)

    def _facts(self) -> list[tuple[str, str]]:
        def spread(values: Spread) -> str:
            return ", ".join(f"{name} {value:,}" for name, value in values.to_dict().items())

        rows = [
            ("format", self.source.format or "by row"),
            ("rows", f"{self.ledger.num_read:,}"),
            ("good samples", f"{self.num_samples:,}"),
            ("rejected", f"{self.ledger.num_rejected:,}"),
            ("without a picture", f"{self.num_text_only:,}"),
            ("pictures", f"{self.num_images:,} ({self.num_distinct_images:,} distinct)"),
            ("picture bytes", f"{self.num_image_bytes:,}"),
            ("width in pixels", spread(self.widths)),
            ("height in pixels", spread(self.heights)),
            ("pictures a sample", spread(self.images_per_sample)),
            ("turns a sample", spread(self.turns)),
            ("tokens a sample", spread(self.tokens) or "not measured (name a model or recipe)"),
        ]
        if self.tokens.counts:
            rows.append(("supervised tokens", f"{self.ledger.num_supervised_tokens:,}"))
            cut = f"{self.ledger.num_truncated:,} ({self.ledger.num_cut_tokens:,} tokens cut)"
            rows.append(("truncated", cut))
        for name, count, examples in (
            ("rows with an id that was used before", self.ledger.notes.get(REPEATED_ID, 0), []),
            ("pictures with equal content", self.num_duplicate_images, self.duplicate_images),
            ("samples that say the same", self.num_duplicate_samples, self.duplicate_samples),
        ):
            shown_pairs = "".join(f"\n{first} = {second}" for first, second in examples)
            rows.append((name, f"{count:,}{shown_pairs}"))
        for (word, is_token), count in self.reserved.most_common():
            how = "one token" if is_token else "plain characters; see answer_tokens"
            rows.append((f"{word} in answers", f"{count:,} ({how})"))
        rows += [("template", note) for note in self.template_notes]
        rows += [(what, f"{n:,}") for what, n in self.ledger.notes.items() if what != REPEATED_ID]
        return rows

    def fix(self, out: str) -> Ledger:
        """Write the good rows to `out` in their own format, the others to a reject file.

        Rejects go to `<out>.rejects.jsonl`: one JSON object a line with `where`, `id`,
        `error`, `message` and `row`, the text as it stood. Shards stay shards.

        Raises:
            DataError: `out` cannot be written, or the data changed since they were checked.
        """
        ledger = Ledger()
        with RejectFile(f"{out}.rejects.jsonl") as kept:
            for reject in self.rejects:
                kept.add(reject)
                ledger.read()
                ledger.reject(reject)
            if self.source.is_shards:
                part = sources.find(self.source.paths[0])
                count = part.copy_good(self.source.paths, self.bad_numbers, out)
            else:
                assert self.source.format is not None
                count = formats.write(self._good(), out, self.source.format)
            if count != self.num_samples:
                raise DataError(
                    f"{self.num_samples} rows were good, {count} were written: the data changed",
                    where=self.source.paths[0],
                    fix="check them again",
                )
        ledger.num_read += count
        ledger.num_used += count
        ledger.check()
        return ledger

    def _good(self) -> Any:
        for number, item in enumerate(self.source.rows()):
            if number not in self.bad_numbers and isinstance(item, Sample):
                yield item


def check(
    path: str | Sequence[str],
    *,
    format: str | None = None,
    images: str | None = None,
    measure: Measure | None = None,
    counter: Counts | None = None,
    context: int | None = None,
    verify: Verify = "full",
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read everything once.

    Args:
        path, format, images: as for `diptych.data.source.locate`.
        measure: (tokens, supervised tokens) of a sample; without it tokens are not counted.
        counter: a measure that also tells of reserved words and of the template.
        context: longest sample in tokens; longer ones are rejects (SampleTooLong).

    Raises:
        DataError: the data set as a whole cannot be read, or has no rows.
    """
    source = locate(path, format, images)
    report = Report(source)
    if counter is not None:
        measure = counter
        report.template_notes = counter.notes()
    seen_images, seen_samples = DiskMap(), DiskMap()
    items = examine(source, verify=verify, measure=measure, context=context, workers=workers)
    label = f"reading {files.base_name(source.paths[0])}"
    for number, item in enumerate(Progress(quiet=not progress).track(items, label)):
        report.ledger.read()
        if isinstance(item, Reject):
            report.ledger.reject(item)
            report.rejects.append(item)
            report.bad_numbers.add(number)
        else:
            _count(report, item, seen_images, seen_samples)
            for word, is_token in counter.reserved(item.sample) if counter is not None else ():
                report.reserved[word, is_token] += 1
    seen_images.close()
    seen_samples.close()
    for what, count in source.passed_over.items():
        report.ledger.note(f"passed over: {what}", count)
    if not report.ledger.num_read:
        raise DataError(
            "the data set has no rows",
            where=source.paths[0],
            fix="check the path; an empty list is no data set",
        )
    report.ledger.check()
    return report


def _count(report: Report, item: Examined, seen_images: DiskMap, seen_samples: DiskMap) -> None:
    sample = item.sample
    for what in item.notes:
        report.ledger.note(what)
    supervised = max(0, item.num_supervised_tokens)
    if item.num_cut_tokens:
        report.ledger.truncate(item.num_cut_tokens, supervised)
    else:
        report.ledger.use(supervised)
    if item.num_tokens >= 0:
        report.tokens.add(item.num_tokens)
    images = list(sample.images())
    report.num_images += len(images)
    report.num_text_only += not images
    report.images_per_sample.add(len(images))
    report.turns.add(len(sample.turns))
    for image, picture in zip(images, item.pictures, strict=False):
        name = image.path if image.span is None else f"{image.path} at byte {image.span[0]}"
        first = seen_images.add(picture.sha256, name)
        if first is None:
            report.num_distinct_images += 1
            report.num_image_bytes += picture.num_bytes
            report.widths.add(picture.width)
            report.heights.add(picture.height)
        elif first != name and seen_images.add(f"{picture.sha256} {name}") is None:
            report.num_duplicate_images += 1
            if len(report.duplicate_images) < MAX_EXAMPLES:
                report.duplicate_images.append((first, name))
    same = hashlib.sha256(repr([(t.role, t.text) for t in sample.turns]).encode())
    names = [picture.sha256 for picture in item.pictures] or [image.path for image in images]
    same.update(repr(names).encode())
    first = seen_samples.add(same.hexdigest(), sample.source)
    if first is not None:
        report.num_duplicate_samples += 1
        if len(report.duplicate_samples) < MAX_EXAMPLES:
            report.duplicate_samples.append((first, sample.source))
