"""Every error that the library raises on purpose. Standard library only.

StylizeError
├── ConfigError          a setting has a value that is not allowed
├── ImageError           a picture cannot be used
│   ├── ImageReadError   it cannot be read: missing, cut short, not a picture
│   └── ImageSizeError   it is too large to decode or write, or too small for the encoder
├── WeightsError         the backbone's weights are unavailable or damaged
├── DivergedError        the loss became NaN or infinite again after a second attempt
├── BlackError           the picture came out black although the photograph is not
├── CheckpointError      a kept picture cannot be gone on from
└── Interrupted          a callback ended the transfer; nothing of it is kept
    └── TimeLimitError   the pair's time limit passed
"""

__all__ = [
    "BlackError",
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "ImageError",
    "ImageReadError",
    "ImageSizeError",
    "Interrupted",
    "StylizeError",
    "TimeLimitError",
    "WeightsError",
]


class StylizeError(Exception):
    """Base of every error that the library raises on purpose; its text is meant for the user."""


class ConfigError(StylizeError, ValueError):
    """A setting has a value that is not allowed. The text names setting, value and limit."""


class ImageError(StylizeError):
    """A picture cannot be used."""


class ImageReadError(ImageError):
    """A picture cannot be read: the file is missing, cut short or not a picture."""


class ImageSizeError(ImageError):
    """A picture is too large to decode safely or for its file format, or too small for the
    encoder."""


class WeightsError(StylizeError):
    """The backbone's weights are unavailable, or are not what they should be."""


class DivergedError(StylizeError):
    """The loss became NaN or infinite, and again after a restart from the best picture so far."""


class BlackError(StylizeError):
    """The picture came out black although the photograph is not, which is surely a failure."""


class CheckpointError(StylizeError):
    """What was kept of a transfer is damaged, or is of another one."""


class Interrupted(StylizeError):
    """Raised by a callback to end a transfer early; nothing of the transfer is kept."""


class TimeLimitError(Interrupted):
    """The pair's time limit passed."""
