"""How answers are normalised before they are compared: facts and steps shared by the metrics.

The published VQA-style metrics share one pipeline (punctuation, then digits and articles) and
disagree only in when they apply it to whom; each metric file says which steps it takes.

Source: GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`; the EvalAI answer
processor of facebookresearch/mmf (`pythia/tasks/processors.py`), as in EvolvingLMMs-Lab/lmms-eval.
Held to them by tests/conformance/test_vqa_metrics.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# One line: the form to write, then the forms that become it. Two entries are as odd as in the
# source: "somebody'd" loses its apostrophe, and forms with a capital never match because the
# text is lower-cased first.
_CONTRACTION_TABLE = """
ain't aint | aren't arent | can't cant | could've couldve | couldn't couldnt
couldn't've couldn'tve couldnt've | didn't didnt | doesn't doesnt | don't dont | hadn't hadnt
hadn't've hadnt've hadn'tve | hasn't hasnt | haven't havent | he'd hed | he'd've hed've he'dve
he's hes | how'd howd | how'll howll | how's hows | I'd've Id've I'dve | I'm Im | I've Ive
isn't isnt | it'd itd | it'd've itd've it'dve | it'll itll | let's let's | ma'am maam
mightn't mightnt | mightn't've mightnt've mightn'tve | might've mightve | mustn't mustnt
must've mustve | needn't neednt | not've notve | o'clock oclock | oughtn't oughtnt
'ow's'at ow's'at 'ows'at 'ow'sat | shan't shant | she'd've shed've she'dve | she's she's
should've shouldve | shouldn't shouldnt | shouldn't've shouldnt've shouldn'tve
somebodyd somebody'd | somebody'd've somebodyd've somebody'dve | somebody'll somebodyll
somebody's somebodys | someone'd someoned | someone'd've someoned've someone'dve
someone'll someonell | someone's someones | something'd somethingd
something'd've somethingd've something'dve | something'll somethingll | that's thats
there'd thered | there'd've thered've there'dve | there're therere | there's theres
they'd theyd | they'd've theyd've they'dve | they'll theyll | they're theyre | they've theyve
'twas twas | wasn't wasnt | we'd've wed've we'dve | we've weve | weren't werent
what'll whatll | what're whatre | what's whats | what've whatve | when's whens
where'd whered | where's wheres | where've whereve | who'd whod | who'd've whod've who'dve
who'll wholl | who's whos | who've whove | why'll whyll | why're whyre | why's whys
won't wont | would've wouldve | wouldn't wouldnt | wouldn't've wouldnt've wouldn'tve
y'all yall | y'all'll yall'll y'allll | y'all'd've yall'd've y'alld've y'all'dve
you'd youd | you'd've youd've you'dve | you'll youll | you're youre | you've youve
"""
CONTRACTIONS = {
    form: target
    for entry in re.split(r"[|\n]", _CONTRACTION_TABLE.strip())
    for target, *forms in [entry.split()]
    for form in forms
}

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_DIGIT_COMMAS_DIGIT = re.compile(r"\d,+\d")
_DOT_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
# The source passes the flag `re.UNICODE` where `re.sub` expects a count; its value is 32.
_MAX_DOTS_DELETED = 32


def flatten(text: str) -> str:
    """Line ends and tabs become blanks; blanks at both ends go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str, *, comma_runs: bool = False) -> str:
    """Delete or blank out punctuation, then delete dots that no digit follows.

    A mark is deleted when it stands beside a blank anywhere in `text`, or when `text` has a
    digit, a comma and a digit in a row; otherwise it becomes a blank.

    Args:
        comma_runs: count several commas between digits as one (the EvalAI processor does).
    """
    commas = _DIGIT_COMMAS_DIGIT if comma_runs else _DIGIT_COMMA_DIGIT
    has_digit_comma = commas.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        delete = has_digit_comma or mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if delete else " ")
    return _DOT_BEFORE_NO_DIGIT.sub("", cleaned, count=_MAX_DOTS_DELETED)


def process_digits_and_articles(text: str) -> str:
    """Lower-case, number words to digits, no articles, contractions with their apostrophes."""
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def evalai(text: str) -> str:
    """The EvalAI answer processor (TextVQA, OK-VQA): its own word split, then both steps."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return process_digits_and_articles(process_punctuation(flatten(words), comma_runs=True))


def leave_one_out_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy: mean over the answers of min(1, matches among the *other* answers / 3).

    With ten answers, 0..4 matches give 0, .3, .6, .9, 1. With fewer than four answers 1 cannot
    be reached; metrics that use this therefore name `MIN_ANSWERS = 4`.

    Source: Antol et al., "VQA: Visual Question Answering", and visualqa.org/evaluation.
    """
    if not answers:
        return 0.0
    matches = sum(answer == prediction for answer in answers)
    in_own_set = min(1.0, (matches - 1) / 3) if matches else 0.0
    in_other_set = min(1.0, matches / 3)
    return (matches * in_own_set + (len(answers) - matches) * in_other_set) / len(answers)


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance in characters: insertions, deletions and substitutions cost 1."""
    if len(left) < len(right):
        left, right = right, left
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def yes_no_figures(
    labels: Sequence[str], truths: Sequence[str], *, negative_is_rest: bool
) -> dict[str, float]:
    """Counts, accuracy, precision, recall and F1 of yes/no labels, "yes" being positive.

    Args:
        negative_is_rest: a label other than "yes" and "no" counts as "no"; otherwise it is
            wrong for the accuracy and counted nowhere else.

    Undefined ratios (nothing to divide by) are 0.
    """
    if negative_is_rest:
        labels = ["yes" if label == "yes" else "no" for label in labels]
    pairs = list(zip(labels, truths, strict=True))
    true_positives = pairs.count(("yes", "yes"))
    false_positives = pairs.count(("yes", "no"))
    true_negatives = pairs.count(("no", "no"))
    false_negatives = pairs.count(("no", "yes"))
    precision = _ratio(true_positives, true_positives + false_positives)
    recall = _ratio(true_positives, true_positives + false_negatives)
    return {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "true_negatives": true_negatives,
        "false_negatives": false_negatives,
        "accuracy": _ratio(true_positives + true_negatives, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
