"""Every error that Diptych raises on purpose.

    DiptychError                      exit 1
    |- InputError                     exit 2: what the user gave is wrong
    |  |- ConfigError                 a recipe key or value
    |  |- PartNotFound                no part, recipe or format of that name
    |  |- MissingExtra                an optional dependency is not installed
    |  |- DataError                   a data file as a whole
    |  |  |- FormatError              a row that cannot be read (JSON, encoding, NUL bytes, fields)
    |  |  |- ImageError               a picture
    |  |  |  |- MissingImage          no such file
    |  |  |  |- EmptyImage            zero bytes
    |  |  |  |- NotAnImage            the bytes are no picture that can be read
    |  |  |  |- TruncatedImage        the picture ends too early
    |  |  |  |- ImageTooLarge         more pixels or bytes than allowed (decompression bomb)
    |  |  |  `- UnsafePath            a path that leaves the image folder, or a scheme not allowed
    |  |  |- ConversationError        a conversation
    |  |  |  |- MarkerMismatch        more or fewer image markers than images
    |  |  |  |- EmptyConversation     no turns, or turns without content
    |  |  |  |- OneSidedConversation  nobody asks, or nobody answers
    |  |  |  `- UnknownRole           a speaker that is neither user, assistant nor system
    |  |  |- DuplicateId              two rows with one id
    |  |  |- DataChanged              the data behind a stopped run are not what they were
    |  |  |- SampleTooLong            does not fit the context
    |  |  `- TooManyRejects           more rejected rows than allowed
    |  |- WeightsNotFound             no such pretrained weights, or no network to get them
    |  |- StartChanged                the tokenizer or weights behind a stopped run are others now
    |  `- RunTaken                    the folder holds another run, or another process works in it
    |- ModelError
    |  |- ImageTokenMismatch          image placeholders and image features differ in number
    |  |- TooManyFailures             more questions of an evaluation failed than it allows
    |  |- ZeroVector                  a vector without a direction: zeros, or numbers not finite
    |  |- CheckpointError             a model folder or checkpoint that cannot be used
    |  |- WeightsCorrupt              a download whose hash is wrong
    |  `- UnsafeFile                  a file that could execute code (pickle) was refused
    |- TrainingError
    |  |- ProcessesDisagree           two counts of the processes of one run differ
    |  |- ProcessLost                 another process of the run ended without a word
    |  |- NothingLearns               a part that should move did not
    |  |- FrozenPartMoved             a part that should stand still moved
    |  `- LossNotFinite               the loss became NaN or infinite
    |- Interrupted                    exit 75: stopped on request, run again to resume
    |- ExportMismatch                 an export that does not compute what the model computes
    |- SinkAway                       a place for vectors that cannot be reached now
    `- WriterError                    the language model behind --writer failed

An error says what happened, where (file, line or key), and what to do.
docs/troubleshooting.md has an entry for each name; a test compares the two.
"""

from __future__ import annotations


class DiptychError(Exception):
    """An error with a place and a way out.

    Args:
        what: one sentence that states the fact, with the numbers involved.
        where: file, line, key or sample it concerns.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  what to do: {self.fix}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str | None]:
        """The error as plain data, for `--json` and reject files."""
        return {
            "error": type(self).__name__,
            "message": self.what,
            "where": self.where,
            "fix": self.fix,
        }

    def __reduce__(self):
        # Exceptions cross process borders (decode workers); keyword arguments would be lost.
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[DiptychError], what: str, where: str | None, fix: str | None):
    return cls(what, where=where, fix=fix)


class InputError(DiptychError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe has an unknown key or a value that does not fit."""


class PartNotFound(InputError):
    """No connector, format, objective, benchmark or recipe of that name."""


class MissingExtra(InputError):
    """An optional dependency is needed and not installed."""


class DataError(InputError):
    """A data file as a whole cannot be used."""


class FormatError(DataError):
    """A row cannot be read: JSON, encoding, NUL bytes, missing fields."""


class ImageError(DataError):
    """A picture cannot be used."""


class MissingImage(ImageError):
    """The picture's file does not exist."""


class EmptyImage(ImageError):
    """The picture's file has no bytes."""


class NotAnImage(ImageError):
    """The bytes are not a picture."""


class TruncatedImage(ImageError):
    """The picture's data end too early."""


class ImageTooLarge(ImageError):
    """The picture would need more pixels or bytes than allowed."""


class UnsafePath(ImageError):
    """The path leaves the image folder or uses a scheme that is not allowed."""


class ConversationError(DataError):
    """The turns of a sample make no conversation to learn from."""


class MarkerMismatch(ConversationError):
    """The number of image markers differs from the number of images."""


class EmptyConversation(ConversationError):
    """There are no turns, or a turn has no content."""


class OneSidedConversation(ConversationError):
    """There is no answer to learn, or no question before it."""


class UnknownRole(ConversationError):
    """A speaker is neither user, assistant nor system."""


class DuplicateId(DataError):
    """Two rows share one id."""


class DataChanged(DataError):
    """The data behind a stopped run are not what they were when it began."""


class SampleTooLong(DataError):
    """The sample has more tokens than the context."""


class TooManyRejects(DataError):
    """More rows were rejected than the run allows."""


class WeightsNotFound(InputError):
    """Pretrained weights of that name are neither local nor reachable."""


class StartChanged(InputError):
    """The tokenizer, template or weights behind a stopped run are not what they were."""


class RunTaken(ConfigError):
    """The folder holds a run of another recipe or other settings, or is in use."""


class ModelError(DiptychError):
    """A model cannot be built, loaded or run."""


class ImageTokenMismatch(ModelError):
    """Image placeholders and image features differ in number."""


class TooManyFailures(ModelError):
    """More questions of an evaluation failed than it allows; it has no score."""


class ZeroVector(ModelError):
    """A vector is all zeros or has numbers that are not finite, so it has no direction."""


class CheckpointError(ModelError):
    """A model folder or checkpoint is incomplete or does not fit."""


class WeightsCorrupt(ModelError):
    """A download does not have the hash it should have."""


class UnsafeFile(ModelError):
    """The file could execute code when loaded; it was not read."""


class TrainingError(DiptychError):
    """Training cannot go on."""


class ProcessesDisagree(TrainingError):
    """The launcher, PyTorch and Accelerate count the processes of one run differently."""


class ProcessLost(TrainingError):
    """Another process of this run ended without saying why."""


class NothingLearns(TrainingError):
    """A part that should learn received no update."""


class FrozenPartMoved(TrainingError):
    """A part that should stand still changed."""


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite."""


class Interrupted(DiptychError):
    """Stopped on request after saving; the same command resumes."""

    exit_code = 75  # EX_TEMPFAIL: schedulers read it as "run me again"


class ExportMismatch(DiptychError):
    """The exported model does not compute what the model computes."""


class SinkAway(DiptychError):
    """A place for vectors cannot be reached now and may be later."""


class WriterError(DiptychError):
    """The language model behind the chart writer failed."""


def first_line(error: object) -> str:
    """What another library's error says, in one line: its last one."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
