"""A tokenizer trained on the data."""

from __future__ import annotations

from transformers import AutoTokenizer

from diptych.data.text.plain_text import PlainText
from diptych.data.text.tokenizer import MARKS, train

TEXTS = ["the largest is 12.5\n", " 服装最大吗\n", " 服装", " 玩具", " Coal"] * 5


def pieces(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]


def test_round_trip_and_digits_and_chinese_stand_alone(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(train(TEXTS, tmp_path, vocab_size=320))
    for text in (*TEXTS, "ünseen 漢字 <b>\t", ""):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert pieces(tmp_path, "12.5") == ["1", "2", ".", "5"]
    assert pieces(tmp_path, "服装") == ["服", "装"]
    assert [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS] == [0, 1, 2]


def test_given_words_are_one_token_wherever_they_stand(tmp_path):
    train(TEXTS, tmp_path, vocab_size=320, words=["服装", "服", "玩具", "(a|b)*"])
    assert pieces(tmp_path, "服装最大") == ["服装", "最", "大"]
    assert pieces(tmp_path, " 玩具") == [" ", "玩具"]
    assert "".join(pieces(tmp_path, "aab (a|b)*")) == "aab (a|b)*"


def test_same_texts_give_the_same_files(tmp_path):
    for name in "ab":
        train(TEXTS, tmp_path / name, vocab_size=320, words=["玩具"])
    first, second = (tmp_path / n / "tokenizer.json" for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_whole_words_are_one_token_behind_a_blank_or_before_chinese(tmp_path):
    whole = ["Kohlrabi", "6月", "2031", "Coal"]
    tokenizer = AutoTokenizer.from_pretrained(
        train(TEXTS, tmp_path, vocab_size=720, words=["2031"], whole=whole)
    )
    assert pieces(tmp_path, "the Kohlrabi in6月") == [*pieces(tmp_path, "the"), " Kohlrabi",
                                                     *pieces(tmp_path, " in"), "6月"]  # fmt: skip
    assert pieces(tmp_path, " Coal") == [" Coal"]
    assert pieces(tmp_path, "2031") != [" 2031"] and len(tokenizer) <= 720
    for text in (" Kohlrabi6月 Coal", "Kohlrabi", "12月"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_whole_words_are_whole_in_a_conversation_too_and_marks_are_not(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(
        train(TEXTS, tmp_path, vocab_size=720, whole=["Kohlrabi", "最大", "v34"])
    )
    tokenizer.add_tokens(["<tool>", "[go]"])
    plain = PlainText(tokenizer)
    for text in (" Kohlrabi", "最大", " v34"):
        assert len(plain(text)) == 1 and list(plain(text)) == tokenizer.encode(text)
    for mark in (*MARKS, "<tool>", "[go]"):
        assert tokenizer.convert_tokens_to_ids(mark) not in plain(f"a {mark} b")
        assert tokenizer.decode(plain(f"a {mark} b")) == f"a {mark} b"


def test_an_end_that_is_also_the_unknown_token_stays_out_of_plain_text():
    """CLIP and GPT-2 name their end so; a normalizer may write it from other letters."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = {c: n for n, c in enumerate("</>end")}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.normalizer = normalizers.Lowercase()
    backend.add_tokens([AddedToken("</end>", normalized=True, special=True)])
    end = backend.token_to_id("</end>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</end>", unk_token="</end>"
    )
    assert tokenizer.encode("</END>", add_special_tokens=False) == [end]
    assert PlainText(tokenizer)("</END>") == tuple(words[c] for c in "</end>")
