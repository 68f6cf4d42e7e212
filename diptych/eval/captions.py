"""Caption metrics: BLEU, ROUGE-L, CIDEr-D and METEOR, as the COCO caption evaluation has them.

Scores depend on how captions are cut into words. The official way is Stanford's PTB tokenizer
(Java, from the pycocoevalcap package); `jieba` cuts Chinese into words; `simple` needs neither,
comes close for plain English and cuts Chinese into characters. Every result says which one it used,
and figures of different ones must not be compared.

Source: salaniz/pycocoevalcap 1.2; BLEU (Papineni 2002), ROUGE-L (Lin 2004), CIDEr-D
(arXiv:1411.5726), METEOR 1.5 (Denkowski 2014).
Parity: tests/conformance/test_caption_metrics.py.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from diptych.errors import ConfigError, DiptychError

TokenizerName = Literal["ptb", "simple", "jieba"]
MAX_ORDER = 4
"""Longest n-gram of BLEU and CIDEr-D."""
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
JAVA_TIMEOUT_SECONDS = 600

# What the PTB tokenizer takes for the end of a line; one inside a caption would silently give
# every later caption the words of the one before.
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_DROPPED = frozenset(
    [
        "''",
        "'",
        "``",
        "`",
        "-LRB-",
        "-RRB-",
        "-LCB-",
        "-RCB-",
        ".",
        "?",
        "!",
        ",",
        ":",
        "-",
        "--",
        "...",
        ";",
    ]
)
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_CHINESE = re.compile(f"[{_HAN}]")
_WORD = rf"(?:(?![{_HAN}])\w)+"
_SIMPLE = re.compile(
    rf"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)*|[{_HAN}]|{_WORD}(?:-{_WORD})*|[^\w\s]"
)
_CONTRACTION = re.compile(r"(?<=\w)n't\b|(?<=\w)'(?=(?:s|re|ve|ll|d|m)\b)")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        corpus: metric -> figure over the whole set; BLEU 1 to 4, ROUGE_L, METEOR in 0..1,
            CIDEr in 0..10.
        per_image: metric -> figure of each image, in the order of the candidates.
        tokenizer: what cut the captions into words.
        official: whether that is the COCO evaluation's own.
    """

    corpus: dict[str, float]
    per_image: dict[str, list[float]]
    tokenizer: str
    official: bool = field(default=False)


def score(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: TokenizerName | None = None,
) -> CaptionScores:
    """Score one caption per image against its references.

    METEOR is there with the official tokenizer only: it needs Java too.

    Args:
        candidates: image -> caption.
        references: image -> captions by people; may hold more images, which do not count.
        tokenizer: null takes what is `fitting`: `jieba` for Chinese references, `ptb` for others,
            each where it is installed, else `simple`.

    Raises:
        ConfigError: an image has no reference, nothing is to be scored, or the tokenizer cannot
            run here.
    """
    if not candidates:
        raise ConfigError("there are no captions to score")
    bare = [image for image in candidates if not references.get(image)]
    if bare:
        raise ConfigError(
            f"{len(bare)} of {len(candidates)} captions have no reference, the first is of "
            f"image '{bare[0]}'",
            fix="give references for every image, or leave its caption out",
        )
    images = list(candidates)
    truth_texts = [r for i in images for r in references[i]]
    name = tokenizer or fitting(truth_texts)
    words = tokenize([*candidates.values(), *truth_texts], name)
    hypotheses, rest = words[: len(images)], iter(words[len(images) :])
    truths = [[next(rest) for _ in references[image]] for image in images]
    scorer = package_scores if find_spec("pycocoevalcap") is not None else score_words
    corpus, per_image = scorer(hypotheses, truths)
    if name == "ptb":
        corpus["METEOR"], per_image["METEOR"] = _meteor(hypotheses, truths)
    return CaptionScores(corpus, per_image, name, official=name == "ptb")


def package_scores(
    hypotheses: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """As `score_words`, by the scorers of the COCO evaluation itself (pycocoevalcap)."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {n: [" ".join(words)] for n, words in enumerate(hypotheses)}
    wanted = {n: [" ".join(words) for words in own] for n, own in enumerate(truths)}
    whole, each = Bleu(MAX_ORDER).compute_score(wanted, said, verbose=0)
    corpus = {f"Bleu_{n}": float(value) for n, value in enumerate(whole, 1)}
    per_image = {f"Bleu_{n}": [float(v) for v in values] for n, values in enumerate(each, 1)}
    for name, scorer in (("ROUGE_L", Rouge()), ("CIDEr", Cider())):
        mean, values = scorer.compute_score(wanted, said)
        corpus[name] = float(mean)
        per_image[name] = [float(value) for value in values]
    return corpus, per_image


def score_words(
    hypotheses: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(corpus figures, figures per image) of captions that are cut into words already.

    Where the COCO evaluation's own scorers are not installed; equal to them:
    tests/conformance/test_caption_metrics.py.
    """
    corpus, per_image = _bleu(hypotheses, truths)
    rouge = [rouge_l(h, t) for h, t in zip(hypotheses, truths, strict=True)]
    cider = _cider(hypotheses, truths)
    for name, values in (("ROUGE_L", rouge), ("CIDEr", cider)):
        corpus[name] = sum(values) / len(values)
        per_image[name] = values
    return corpus, per_image


# -- words ----------------------------------------------------------------------------------


def official_available() -> bool:
    """Whether the PTB tokenizer and METEOR can run: Java and the pycocoevalcap package."""
    return shutil.which("java") is not None and find_spec("pycocoevalcap") is not None


def fitting(references: Sequence[str]) -> TokenizerName:
    """The tokenizer that captions in the language of half of their references or more ask for."""
    chinese = sum(bool(_CHINESE.search(text)) for text in references)
    if references and 2 * chinese >= len(references):
        return "jieba" if find_spec("jieba") else "simple"
    return "ptb" if official_available() else "simple"


def tokenize(texts: Sequence[str], tokenizer: TokenizerName) -> list[list[str]]:
    """Words of each text, in order.

    Raises:
        ConfigError: the tokenizer cannot run here.
        DiptychError: the tokenizer gave another number of lines than it got.
    """
    # A surrogate without its other half cannot be written to a file.
    whole = (text.encode("utf-8", "replace").decode("utf-8") for text in texts)
    lines = [_LINE_ENDS.sub(" ", text) for text in whole]
    if tokenizer == "ptb":
        return _ptb(lines)
    if tokenizer == "jieba":
        return [[w for w in _jieba(line) if w not in _DROPPED] for line in lines]
    spaced = [_CONTRACTION.sub(lambda m: f" {m.group()}", line.lower()) for line in lines]
    return [[w for w in _SIMPLE.findall(line) if w not in _DROPPED] for line in spaced]


def _jieba(line: str) -> list[str]:
    if find_spec("jieba") is None:
        raise ConfigError("Chinese captions need jieba", fix='pip install "diptych[captions]"')
    import jieba

    jieba.setLogLevel("WARNING")
    ends = "。，、；：？！“”‘’（）《》…—"
    return [w for w in jieba.lcut(line.lower()) if w.strip() and w not in ends]


def _ptb(lines: Sequence[str]) -> list[list[str]]:
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "captions.txt"
        source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        out = _java(
            ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer",
             "-preserveLines", "-lowerCase", "-encoding", "utf-8", str(source)],
        )  # fmt: skip
    # Split at line feeds alone: `splitlines` knows more ends than the tokenizer writes.
    found = out.removesuffix("\n").split("\n")
    if len(found) != len(lines):
        raise DiptychError(
            f"the PTB tokenizer gave {len(found)} lines for {len(lines)} captions",
            fix="a caption holds a character that it takes for a line end; report it, please",
        )
    return [[w for w in line.rstrip().split(" ") if w and w not in _DROPPED] for line in found]


def _package() -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations or shutil.which("java") is None:
        missing = "Java" if shutil.which("java") is None else "the pycocoevalcap package"
        raise ConfigError(
            f"the official caption metrics need {missing}",
            fix='install a Java runtime and "diptych[captions]", or use tokenizer="simple"',
        )
    return Path(spec.submodule_search_locations[0])


def _java(arguments: Sequence[str], text: str | None = None, folder: Path | None = None) -> str:
    # METEOR reads and writes numbers by the locale; it must be one with decimal points.
    options = ["-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
    try:
        done = subprocess.run(
            ["java", *options, *arguments],
            input=text, cwd=folder, capture_output=True, encoding="utf-8", check=False,
            timeout=JAVA_TIMEOUT_SECONDS,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, OSError) as error:
        raise DiptychError(f"Java did not answer: {error}") from None
    if done.returncode:
        raise DiptychError(f"Java stopped with code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


# -- scores ---------------------------------------------------------------------------------


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def _bleu(
    hypotheses: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """BLEU with the closest reference length, and the COCO evaluation's tiny constants."""
    per_image: dict[str, list[float]] = {f"Bleu_{n}": [] for n in range(1, MAX_ORDER + 1)}
    correct, guessed = [0] * MAX_ORDER, [0] * MAX_ORDER
    length = closest = 0
    for words, own in zip(hypotheses, truths, strict=True):
        hits, tries = [], []
        for order in range(1, MAX_ORDER + 1):
            best: Counter[tuple[str, ...]] = Counter()
            for truth in own:
                best |= _ngrams(truth, order)
            hits.append((_ngrams(words, order) & best).total())
            tries.append(max(0, len(words) - order + 1))
        near = min((abs(len(t) - len(words)), len(t)) for t in own)[1]
        for n, value in enumerate(_bleu_of(hits, tries, len(words), near), 1):
            per_image[f"Bleu_{n}"].append(value)
        correct = [a + b for a, b in zip(correct, hits, strict=True)]
        guessed = [a + b for a, b in zip(guessed, tries, strict=True)]
        length, closest = length + len(words), closest + near
    whole = _bleu_of(correct, guessed, length, closest)
    return {f"Bleu_{n}": value for n, value in enumerate(whole, 1)}, per_image


def _bleu_of(
    correct: Sequence[int], guessed: Sequence[int], length: int, closest: int
) -> list[float]:
    ratio = (length + 1e-15) / (closest + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for order, (hits, tries) in enumerate(zip(correct, guessed, strict=True), 1):
        product *= (hits + 1e-15) / (tries + 1e-9)
        values.append(product ** (1 / order) * penalty)
    return values


def rouge_l(words: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
    """F-measure of the longest common subsequence, best precision and best recall apart."""
    common = [_longest_common(words, truth) for truth in truths]
    precision = max(common) / max(1, len(words))
    recall = max(c / max(1, len(t)) for c, t in zip(common, truths, strict=True))
    if not precision or not recall:
        return 0.0
    square = ROUGE_BETA**2
    return (1 + square) * precision * recall / (recall + square * precision)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        previous = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = previous + 1 if word == other else max(above, row[place - 1])
            previous = above
    return row[-1]


Vector = list[dict[tuple[str, ...], float]]


def _cider(
    hypotheses: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """CIDEr-D of each image; document frequencies come from the references at hand.

    With one image every n-gram is in every document and all scores are 0.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for own in truths:
        seen = {g for t in own for n in range(1, MAX_ORDER + 1) for g in _ngrams(t, n)}
        frequency.update(seen)
    log_images = math.log(len(truths))

    def vector(words: Sequence[str]) -> tuple[Vector, list[float]]:
        parts: Vector = []
        for order in range(1, MAX_ORDER + 1):
            counts = _ngrams(words, order)
            parts.append(
                {g: n * (log_images - math.log(max(1, frequency[g]))) for g, n in counts.items()}
            )
        return parts, [math.sqrt(sum(v * v for v in p.values())) for p in parts]

    scores = []
    for words, own in zip(hypotheses, truths, strict=True):
        hypothesis, norms = vector(words)
        total = 0.0
        for truth in own:
            reference, reference_norms = vector(truth)
            # Lengths are counted in bigrams there.
            gap = max(0, len(words) - 1) - max(0, len(truth) - 1)
            penalty = math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
            for mine, theirs, a, b in zip(
                hypothesis, reference, norms, reference_norms, strict=True
            ):
                product = sum(min(v, theirs[g]) * theirs[g] for g, v in mine.items() if g in theirs)
                total += penalty * (product / (a * b) if a and b else product)
        scores.append(10 * total / MAX_ORDER / len(own))
    return scores


def _meteor(
    hypotheses: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, list[float]]:
    """METEOR 1.5 through its own program, which talks in lines."""
    folder = _package() / "meteor"
    command = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]

    def plain(words: Sequence[str]) -> str:
        return " ".join(words).replace("|||", "").replace("  ", " ")

    asked = "".join(
        " ||| ".join(["SCORE", *(plain(t) for t in own), plain(words)]) + "\n"
        for words, own in zip(hypotheses, truths, strict=True)
    )
    counts = _java(command, asked, folder).splitlines()
    if len(counts) != len(hypotheses):
        raise DiptychError(f"METEOR gave {len(counts)} lines for {len(hypotheses)} captions")
    told = _java(command, " ||| ".join(["EVAL", *counts]) + "\n", folder).split()
    values = [float(v) for v in told]
    return values[-1], values[:-1]
