"""Every error the library raises on purpose. Standard library only.

StylizeError
├── ConfigError          a setting has a value that it cannot have
├── ImageError           a picture cannot be used
│   ├── ImageReadError   it cannot be read: missing, cut short, not a picture
│   └── ImageSizeError   it is too large to be decoded or written, or too small for the encoder
├── WeightsError         the backbone's weights cannot be had, or are not what they should be
├── DivergedError        the loss stayed NaN or infinite after a second attempt
├── BlackError           the picture came out black, and the photograph is not
└── Interrupted          the callback asked for an end; carries nothing, keeps nothing
    └── TimeLimitError   the pair's time limit passed
"""

__all__ = [
    "BlackError",
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
    """Base of every error that the library raises on purpose; the text is meant for the user."""


class ConfigError(StylizeError, ValueError):
    """A setting has a value that it cannot have. The text names setting, value, limit, remedy."""


class ImageError(StylizeError):
    """A picture cannot be used."""


class ImageReadError(ImageError):
    """A picture cannot be read: the file is missing, cut short or not a picture."""


class ImageSizeError(ImageError):
    """A picture is too large to be decoded safely or for its file's format, or too small for the
    encoder."""


class WeightsError(StylizeError):
    """The backbone's weights cannot be had, or are not what they should be."""


class DivergedError(StylizeError):
    """The loss became NaN or infinite, and did so again from the best picture so far."""


class BlackError(StylizeError):
    """The picture came out black, and the photograph is not: nobody wants that, or it is a bug."""


class Interrupted(StylizeError):
    """Raised by a callback to end an optimisation early; nothing of it is kept."""


class TimeLimitError(Interrupted):
    """The time limit of the pair passed."""
