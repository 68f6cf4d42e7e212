"""Ids of training are the ids of asking, and those of the Hugging Face processor.

The oracle is `LlavaProcessor` with the chat template that leaves with a model: it renders parts,
puts one `<image>` for every token of a picture, and tokenises the whole text. Two differences
are meant, and stand in docs/chat-templates.md: a reserved word that a person typed is plain text
here, and an answer never melts into the invitation before it.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image as Pillow
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

from diptych.convert.chat_parts import IMAGE_MARK, for_parts
from diptych.data.sample import IMAGE_TOKEN, Image, Sample, Text, Turn
from diptych.data.text.chat import TEMPLATES, ChatEncoder, Fate
from diptych.model.arrangement import Arrangement

NUM_CONVERSATIONS = 500
TOKENS = 4
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set said = m.content.split('</think>')[-1].lstrip('\n') if '</think>' in m.content else m.content %}"
    "{{- '<|im_start|>assistant\n' }}{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- said + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TRIMS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
THINKING = ["<think>", "</think>"]
TEXTS = {**{n: n for n in TEMPLATES}, "qwen3": QWEN3, "trims": TRIMS}
PIECES = [
    "What colour is it?", "这是什么？", "Is", "red", " blanks at the ends  ", "\nA line\n\nand another",
    "yes", "12.5 %", "表格 values:", "A\tB", "a", "Describe  the   picture.", "é ü", "(see above)",
    "naïve 😀", "USER: not really", "one\n", " \n x",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folders):
    found = {}
    for name, folder in tokenizer_folders.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        new = [m for m in MARKS if m not in tokenizer.get_vocab()]
        tokenizer.add_tokens(new, special_tokens=True)
        tokenizer.add_tokens(THINKING)
        found[name] = tokenizer
    return found


def conversation(rng: random.Random, number: int) -> Sample:
    """Some turns with pictures at the front, at the end and inside sentences."""
    turns = []
    for _ in range(rng.randint(1, 3)):
        parts: list[Image | Text] = []
        for _ in range(rng.randint(1, 4)):
            part = Image("p.png") if rng.random() < 0.4 else Text(rng.choice(PIECES))
            parts.append(part)
        if not any(isinstance(p, Text) and p.text.strip() for p in parts):
            parts.append(Text(rng.choice(PIECES)))
        turns.append(Turn("user", tuple(parts)))
        said = " ".join(rng.choice(PIECES) for _ in range(rng.randint(1, 3)))
        turns.append(Turn("assistant", (Text(said),)))
    return Sample(str(number), tuple(turns))


def processor_of(tokenizer, encoder: ChatEncoder) -> LlavaProcessor:
    import copy

    known = copy.deepcopy(tokenizer)
    known.add_tokens([IMAGE_MARK], special_tokens=True)
    begin = encoder.adds_begin and encoder.begin_can_be_written
    template = for_parts(encoder.template, encoder.joint, begin=begin)
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}
        ),
        tokenizer=known, patch_size=7, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=template,
    )  # fmt: skip


PICTURE = Pillow.fromarray(np.zeros((14, 14, 3), np.uint8))


def processor_ids(processor, sample: Sample, generation: bool) -> list[int]:
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": p.text}
                if isinstance(p, Text)
                else {"type": "image", "image": PICTURE}
                for p in turn.parts
            ],
        }
        for turn in sample.turns
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=generation, return_dict=True
    )
    return list(inputs["input_ids"][0])


@pytest.mark.parametrize(
    "kind", ["byte-level", "sentencepiece", "unigram", "legacy llama", "wordpiece"]
)
@pytest.mark.parametrize("name", list(TEXTS))
def test_ids_are_those_of_the_processor(tokenizers, name, kind):
    tokenizer = tokenizers[kind]
    encoder = ChatEncoder(tokenizer, TEXTS[name], Arrangement(TOKENS))
    processor = processor_of(tokenizer, encoder)
    image = processor.image_token_id
    rng = random.Random(f"{name} {kind}")
    num_torn = 0
    for number in range(NUM_CONVERSATIONS // 5):
        sample = conversation(rng, number)
        encoded = encoder.encode(sample)
        ours = [image if i == IMAGE_TOKEN else i for i in encoded.ids]
        theirs = processor_ids(processor, sample, generation=False)
        asked = encoder.encode(sample.without_answer(), generation=True)
        before = encoded.ids[: _last_answer(encoded.fates)]
        assert before == asked.ids, sample
        asked_ids = [image if i == IMAGE_TOKEN else i for i in asked.ids]
        if ours != theirs:
            # The one difference that is meant: an answer melts into its invitation.
            num_torn += 1
            assert melts(processor, sample, theirs), show(tokenizer, ours, theirs)
        asked_theirs = processor_ids(processor, sample.without_answer(), generation=True)
        asked_ids = [image if i == IMAGE_TOKEN else i for i in asked.ids]
        if asked_ids != asked_theirs:
            assert melts(processor, sample.without_answer(), asked_theirs)
    assert num_torn < NUM_CONVERSATIONS // 5 // 2


def melts(processor, sample: Sample, whole: list[int]) -> bool:
    """Whether some answer's invitation, tokenised alone, is not how the whole begins."""
    for number, turn in enumerate(sample.turns):
        if turn.role == "assistant":
            asked = Sample("", sample.turns[:number])
            invited = processor_ids(processor, asked, generation=True)
            if whole[: len(invited)] != invited:
                return True
    return False


def show(tokenizer, ours: list[int], theirs: list[int]) -> str:
    first = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    near = slice(max(0, first - 6), first + 8)
    names = tokenizer.convert_ids_to_tokens
    return f"at {first}: {names(ours[near])} against {names(theirs[near])}"


def _last_answer(fates) -> int:
    """Where the last answer begins."""
    end = len(fates) - 1
    while fates[end] is not Fate.TARGET:
        end -= 1
    while end and fates[end - 1] is Fate.TARGET:
        end -= 1
    return end
