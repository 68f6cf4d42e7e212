"""A small tokenizer trained on the data itself.

A language model that learns from scratch does not need the vocabulary of the whole web: its
output layer, and with it most of the work of a small model, shrinks with the vocabulary.
Byte-level, so that any text in any script can be written; digits and Chinese characters stand
alone, so that a number or a name is spelled the same way in a question and in its answer: a
small model learns to copy it from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.data.text.chat_template import TEMPLATES

MARKS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
"""Padding, end and start of a turn. The end has not the id 2: transformers' CLIP takes that number
as a sign to pool at the largest id of a text."""


VOCAB_SIZE = 2048
"""Tokens where nothing else is asked for."""


MAX_WHOLE = 576
"""Most words that are made one token each whatever their pieces."""


def train(
    texts: Iterable[str],
    folder: Path,
    *,
    vocab_size: int = VOCAB_SIZE,
    words: Iterable[str] = (),
    whole: Sequence[str] = (),
) -> Path:
    """Train a byte-level BPE tokenizer and save it as a folder that transformers loads.

    Args:
        texts: what it shall write well: questions, answers, descriptions.
        vocab_size: tokens, the 256 bytes and the three ChatML marks included.
        words: never split off from within and never merged with what stands around them, such as
            names in Chinese, which no blanks set apart; frequent ones become one token each.
        whole: words that shall be one token each, the most important first; the last
            `MAX_WHOLE` tokens are for those of them that would otherwise be several. Byte-pair
            merges spend the vocabulary on the pieces of long words and never finish rare ones.

    Returns:
        `folder`; the same texts give the same files.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    names = "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))
    alone = "[\\d\u3400-\u4dbf\u4e00-\u9fff]"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(f"{names}|{alone}" if names else alone), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - (MAX_WHOLE if whole else 0),
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The marks of a conversation are always written; so are the roles between them.
    tokenizer.train_from_iterator([*texts, "system\n", "user\n", "assistant\n"], trainer)
    # As they stand in a text: behind a blank, but in scripts that have none.
    written = [f" {word}" if word.isascii() and not word[0].isdigit() else word for word in whole]
    written = [text for text in written if len(tokenizer.encode(text).ids) > 1]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in written[:MAX_WHOLE]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATES["chatml"]
    fast.save_pretrained(folder)
    return folder
