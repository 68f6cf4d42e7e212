"""How many tokens a sample takes, for checks before training."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.data.chat import ChatEncoder
from diptych.data.sample import Sample


@dataclass
class TokenCounter:
    """Sample -> (tokens, supervised tokens); picklable, so that workers can count."""

    encoder: ChatEncoder

    def __call__(self, sample: Sample) -> tuple[int, int]:
        encoded = self.encoder.encode(sample)
        return len(encoded), encoded.num_targets
