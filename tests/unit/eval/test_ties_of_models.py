"""Models that cannot tell candidates apart, and models that are broken, score nothing."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych.data.sample import Image, Sample, Text, Turn
from diptych.errors import ModelError
from diptych.eval.benchmarks.questions import Questions
from diptych.eval.runner import evaluate
from diptych.model.architecture import config_from_dict
from diptych.model.folder import build, save_model
from tests.conftest import square

COLOURS = ("red", "green", "blue")
LONG = "a very large picture of the square that is left of the small one and right of the two " * 2


def samples(first: bool, before: str = "", said: str = ""):
    """One square a colour; the right choice stands first or last."""
    rows = []
    for number, colour in enumerate(COLOURS):
        others = [c for c in COLOURS if c != colour]
        choices = [before + c for c in ([colour, *others] if first else [*others, colour])]
        image = Image(f"{colour}.png", data=square(colour))
        asked = (Turn("user", (image, Text(said))),) if said else (Turn("user", (image,)),)
        rows.append(
            Sample(str(number), (*asked, Turn("assistant", (Text(before + colour),))),
                   meta={"choices": choices})
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def dual(tiny_dual):
    return lambda: build(config_from_dict(tiny_dual()), seed=1).eval()


def run(model, rows, **settings):
    benchmark = Questions(rows, how="likelihood")
    return evaluate(model, benchmark, progress=False, **{"blind": False, **settings})


@pytest.mark.parametrize("first", [True, False])
def test_a_dual_encoder_whose_texts_are_all_the_same(dual, first):
    model = dual()
    with torch.no_grad():
        model.space.text.weight.zero_()
    result = run(model, samples(first))
    assert (result.score, result.ties, result.failures) == (0.0, 3, 0)


@pytest.mark.parametrize("first", [True, False])
def test_choices_that_are_cut_to_the_same_tokens(dual, first):
    result = run(dual(), samples(first, before=LONG))
    assert (result.score, result.ties) == (0.0, 3)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_dual_encoder_that_is_broken(dual, first, value):
    model = dual()
    with torch.no_grad():
        model.space.text.weight.fill_(value)
    with pytest.raises(ModelError, match="not a number"):
        run(model, samples(first))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_language_model_that_says_the_same_of_everything(tiny_model, first, pixels):
    model = tiny_model().eval()
    with torch.no_grad():
        model.language_model.module.get_output_embeddings().weight.zero_()
    rows = samples(first, said="What colour?")
    # Every token is as likely, so candidates of as many tokens tie: here all of them.
    assert len({len(model.tokenizer.encode(colour)) for colour in COLOURS}) == 1
    rows = rows if pixels else [row.without_images() for row in rows]
    result = run(model, rows)
    assert (result.score, result.ties) == (0.0, len(rows))


@pytest.mark.parametrize("how", ["generate", "likelihood"])
def test_a_language_model_that_is_broken_has_no_score(tiny_model, how):
    model = tiny_model().eval()
    with torch.no_grad():
        model.language_model.module.get_output_embeddings().weight.fill_(float("nan"))
    benchmark = Questions(samples(True, said="What colour?"), how=how)
    with pytest.raises(ModelError, match="not a number"):
        evaluate(model, benchmark, progress=False)


def test_a_broken_model_answers_in_json(dual, tmp_path):
    model = dual()
    with torch.no_grad():
        model.space.text.weight.fill_(float("nan"))
    save_model(model, tmp_path / "model")
    picture = tmp_path / "red.png"
    picture.write_bytes(square("red"))
    given = ["--image", str(picture), "--text", "red", "--text", "blue", "--json"]
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "model"), *given])
    assert done.exit_code == 0, done.output

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(done.stdout, parse_constant=refuse)
    assert found["similarity"] == [[None, None]]
    assert found["not_finite"]["similarity[0][1]"] == "NaN"
