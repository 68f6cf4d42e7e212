"""What the evaluation says, read from `evaluation.json`, and the sentence that sums it up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diptych.report.run_folder import RunFolder, mapping, number, text
from diptych.report.wording import NO_BREAK, count, percent, rough_duration

CONTENDERS = {
    "after": "After training",
    "before": "Before training",
    "blind": "Blind (image withheld)",
    "majority": "Majority answer",
    "lookup": "Look-up of the question",
}
CONTROLS = {
    "blind": "the blind control",
    "majority": "the majority answer",
    "lookup": "the look-up of the question",
}
MAX_LISTED = 20
"""Questions that are named one by one."""
SHARE_CORRECT = ("", "accuracy", "exact", "relaxed")


@dataclass(frozen=True)
class Score:
    """One contender's score in 0..1 with its 95 % interval and number of questions."""

    score: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @staticmethod
    def read(value: Any) -> Score | None:
        """From `{"score", "low", "high", "n"}` or a bare number; None when there is no score."""
        fields = value if isinstance(value, dict) else {"score": value}
        score, n = number(fields.get("score")), number(fields.get("n"))
        if score is None:
            return None
        low, high = number(fields.get("low")), number(fields.get("high"))
        return Score(score, low, high, None if n is None else int(n))


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json` as far as it can be read."""

    fields: dict[str, Any]

    @cached_property
    def scores(self) -> dict[str, Score]:
        """The contenders that have a score, in the order of CONTENDERS."""
        return _scores(self.fields)

    @cached_property
    def names(self) -> dict[str, str]:
        """What the contenders are called; retrieval has chance where others have a majority."""
        own = mapping(self.fields.get("names"))
        return {k: text(own[k], 40) if k in own else name for k, name in CONTENDERS.items()}

    @cached_property
    def controls(self) -> dict[str, str]:
        """The controls as they stand in a sentence."""
        named = {k: f"{self.names[k].lower()}" for k in mapping(self.fields.get("names"))}
        return {**CONTROLS, **{k: v for k, v in named.items() if k in CONTROLS}}

    @cached_property
    def kinds(self) -> dict[str, dict[str, Score]]:
        """Question kind -> contender -> score; what the model does best comes first."""
        kinds = {
            text(kind, 80): _scores(mapping(value))
            for kind, value in mapping(self.fields.get("by_kind")).items()
        }
        filled = {kind: scores for kind, scores in kinds.items() if scores}
        nothing = Score(-1.0)
        best = sorted(filled, key=lambda kind: (-filled[kind].get("after", nothing).score, kind))
        return {kind: filled[kind] for kind in best}

    @property
    def difference(self) -> Score | None:
        """After minus before, paired by question, as a share in -1..1."""
        return Score.read(self.fields.get("difference"))

    @property
    def best_control(self) -> str | None:
        """The control that is hardest to beat, by name."""
        controls = [name for name in CONTROLS if name in self.scores]
        return max(controls, key=lambda name: self.scores[name].score) if controls else None

    @property
    def clear_of_controls(self) -> bool | None:
        """Whether the interval after training lies above that of every control; None: unknown."""
        after, best = self.scores.get("after"), self.best_control
        if after is None or after.low is None or best is None:
            return None
        highs = [self.scores[name].high for name in CONTROLS if name in self.scores]
        known = [high for high in highs if high is not None]
        return after.low > max(known) if len(known) == len(highs) else None


def read(run: RunFolder) -> Evaluation:
    """The evaluation of a run; without scores when the file is missing."""
    return Evaluation(run.tree("evaluation.json"))


def num_questions(scores: dict[str, Score]) -> int:
    """Number of questions behind a set of scores, 0 when none of them says."""
    return max((score.n or 0 for score in scores.values()), default=0)


def _scores(fields: dict[str, Any]) -> dict[str, Score]:
    read_all = {name: Score.read(fields.get(name)) for name in CONTENDERS}
    return {name: score for name, score in read_all.items() if score is not None}


def training_seconds(run: RunFolder) -> float | None:
    """Time spent learning: phases called `train ...`, or by the name of a stage."""
    stages = {name.lower() for name in run.stage_names}
    total = 0.0
    for name, seconds in phases(run):
        words = name.lower().split()
        learns = words[:1] in (["train"], ["training"])
        if learns or " ".join(words).removeprefix("stage ") in stages:
            total += seconds
    return total or None


def phases(run: RunFolder) -> list[tuple[str, float]]:
    """(name, seconds) of the run's phases in order."""
    listed = run.tree("timings.json").get("phases")
    named = [p for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []
    pairs = [(text(p.get("name"), 80), number(p.get("seconds"))) for p in named]
    return [(name, seconds) for name, seconds in pairs if seconds is not None]


def headline(run: RunFolder) -> list[tuple[str, bool]]:
    """What happened, in one sentence, as (words, whether to stress them).

    A gain is called a gain only where the 95 % interval lies above every control.
    """
    own = (
        text(run.tree("page.json").get("headline"), 200)
        if (run.path / "page.json").exists()
        else ""
    )
    if own:
        return [(own, False)]
    found = read(run)
    seconds, total = training_seconds(run), number(run.tree("timings.json").get("seconds"))
    opening = ""
    if seconds is not None:
        opening = f"After {rough_duration(seconds)} of training, "
    elif total is not None:
        opening = f"In a run of {rough_duration(total)}, "
    after = found.scores.get("after")
    if after is None:
        return [(_capital(f"{opening}the model is ready, but nobody has tested it yet."), False)]
    metric = text(found.fields.get("metric"), 40)
    share = percent(after.score)
    if metric == "recall@1":
        said = [(_capital(f"{opening}the right one stands first for "), False), (share, True)]
        said.append((" of unseen queries", False))
    elif metric in SHARE_CORRECT:
        said = [(_capital(f"{opening}the model answers "), False), (share, True)]
        said.append((" of unseen questions correctly", False))
    else:
        said = [(_capital(f"{opening}the model scores "), False), (share, True)]
        said.append((f" ({metric}) on unseen questions", False))
    best = found.best_control
    if best is None:
        return [*said, (". No control was measured.", False)]
    control = found.scores[best].score
    if metric == "recall@1" and control > 0 and found.clear_of_controls:
        times = f"{after.score / control:.0f}{NO_BREAK}times"
        return [*said, (", ", False), (times, True), (f" {found.controls[best]}.", False)]
    gain = after.score - control
    distance = f"{abs(round(100 * gain))}{NO_BREAK}points"
    if gain < 0:
        return [
            *said,
            (f", {distance} ", False),
            ("below", True),
            (f" {found.controls[best]}.", False),
        ]
    if found.clear_of_controls is False:
        tail = f" above {found.controls[best]}: too close to call."
        return [*said, (", only ", False), (distance, True), (tail, False)]
    return [*said, (", ", False), (distance, True), (f" above {found.controls[best]}.", False)]


def verdict(found: Evaluation) -> tuple[str, str] | None:
    """(mood, sentence) on whether the controls were beaten; None when it cannot be said."""
    clear = found.clear_of_controls
    if clear is None:
        return None
    if clear:
        return "good", "The 95 % interval after training lies clear of every control."
    return "poor", "The 95 % interval after training is not clear of every control."


def notes(found: Evaluation) -> list[str]:
    """What became of questions that were not simply answered, one sentence each."""
    listed = found.fields.get("too_long")
    too_long = [text(id, 80) for id in listed] if isinstance(listed, list) else []
    said = []
    if too_long:
        more = ", ..." if len(too_long) > MAX_LISTED else ""
        said.append(
            f"{count(len(too_long))} prompts are longer than the context and count as wrong: "
            f"{', '.join(too_long[:MAX_LISTED])}{more}."
        )
    if ties := number(found.fields.get("ties")):
        said.append(f"{count(int(ties))} ties between candidates count against the model.")
    if failures := number(found.fields.get("failures")):
        said.append(f"{count(int(failures))} questions could not be answered and do not count.")
    return said


def questions(found: Evaluation) -> str:
    """How many questions of which benchmark, in words."""
    n = number(found.fields.get("n")) or num_questions(found.scores)
    benchmark = text(found.fields.get("benchmark"), 80)
    parts = [f"{count(n)} held-out questions" if n else "", f"of {benchmark}" if benchmark else ""]
    return " ".join(part for part in parts if part)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
