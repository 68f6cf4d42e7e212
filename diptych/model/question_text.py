"""BLIP's reader and writer of questions and answers.

The reader reads a question in the light of a picture; the writer answers from what the reader made
of it. They start from a text mixture and share nothing.

Shapes: n questions, T tokens, N image tokens, C their width, D text width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from diptych.model.text_mixture import TextMixture


class QuestionText(TextMixture):
    """A text mixture taken apart: the writer looks at question states, not at pictures.

    Source: BLIP, figure 5 (arXiv:2201.12086); `blip_vqa.py` of salesforce/LAVIS.
    Parity: tests/parity/test_hf_blip_vqa.py.
    """

    def __init__(self, mixture: TextMixture):
        nn.Module.__init__(self)
        self.config = mixture.config
        self.hf_config = mixture.hf_config
        self.tokenizer = mixture.tokenizer
        self.context_tokens = mixture.context_tokens
        self.reader = mixture.reader
        self.writer = copy.deepcopy(mixture.writer)  # its own weights from here on
        self._look_at_questions()

    def _look_at_questions(self) -> None:
        """Cross-attention of the writer to states of the text's width; new where that is another.

        Copied where widths agree, as in BLIP, whose encoder and text are both 768 wide.
        """
        width, was = self.hf_config.hidden_size, self.hf_config.encoder_hidden_size
        if width == was:
            return
        self.writer.config.encoder_hidden_size = width
        for layer in self.writer.bert.encoder.layer:
            attention = layer.crossattention.self
            for name in ("key", "value"):
                fresh = nn.Linear(width, getattr(attention, name).out_features)
                nn.init.normal_(fresh.weight, std=self.hf_config.initializer_range)
                nn.init.zeros_(fresh.bias)
                setattr(attention, name, fresh)

    def understand(self, ids: Tensor, mask: Tensor, image_states: Tensor | None) -> Tensor:
        """Questions [n, T] in the light of pictures [n, N, C], or blind -> states [n, T, D]."""
        ids = ids.clone()
        ids[:, 0] = self.grounded_start
        return self.reader(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image_states
        ).last_hidden_state

    def answer(
        self, ids: Tensor, mask: Tensor, question_states: Tensor, question_mask: Tensor
    ) -> Tensor:
        """States [n, T, D] that predict the next token of answers [n, T], end token included."""
        ids = ids.clone()
        ids[:, 0] = self.decoder_start
        return self.writer.bert(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=question_states,
            encoder_attention_mask=question_mask,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state

    def token_log_probs(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Log-probability float32 [n, T - 1] of every answer token but the first; 0 at padding."""
        logits = self.logits(states[:, :-1]).float().log_softmax(-1)
        found = logits.gather(-1, ids[:, 1:, None])[..., 0]
        return found * mask[:, 1:]

    @torch.inference_mode()
    def written(
        self, question_states: Tensor, question_mask: Tensor, *, max_new_tokens: int, num_beams: int
    ) -> list[str]:
        """An answer to each question, by beam search."""
        starts = torch.full((len(question_states), 1), self.decoder_start)
        ids = self.writer.generate(
            input_ids=starts.to(question_states.device),
            encoder_hidden_states=question_states,
            encoder_attention_mask=question_mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts = self.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        return [text.strip() for text in texts]
