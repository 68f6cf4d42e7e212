"""A warning when a loss stays where it would be without looking at anything."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

SHARE = 0.97
"""A loss above this share of its chance level counts as at chance."""
CAUSES = (
    "usual causes: a learning rate that is too high or too low, features of another layer or "
    "preprocessing than the encoder was trained with, captions that do not belong to their "
    "pictures, a batch of few distinct pictures"
)


class ChanceWatch:
    """Counts the steps that one loss has spent at chance; warns once.

    Args:
        name: of the loss.
        num_steps: steps in a row before the warning.
    """

    def __init__(self, name: str, num_steps: int):
        self.name = name
        self.num_steps = num_steps
        self.steps = 0
        self.warned = False

    def see(self, loss: float, chance: float) -> None:
        """The loss of one step, and what it would be by chance, in nats."""
        self.steps = self.steps + 1 if loss > SHARE * chance else 0
        if self.steps >= self.num_steps and not self.warned:
            self.warned = True
            log.warning(
                "the loss %s has stayed at chance for %d steps (%.4f, chance %.4f, "
                "threshold %.0f %% of it); %s",
                self.name, self.steps, loss, chance, 100 * SHARE, CAUSES,
            )  # fmt: skip
