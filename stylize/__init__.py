"""Style transfer by image optimisation, as a library: `transfer_style` and `StyleConfig`.

    from stylize import transfer_style, StyleConfig

    result = transfer_style("photo.jpg", "painting.jpg", StyleConfig.of("default", size=512))
    result.save("painted.png")

How a picture is made can be read in `stylize.transfer`.

Names are imported when first used (PEP 562), so `StyleConfig` can be used without loading torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stylize.config import StyleConfig as StyleConfig
    from stylize.errors import StylizeError as StylizeError
    from stylize.request import Request as Request
    from stylize.request import Step as Step
    from stylize.request import StyleResult as StyleResult
    from stylize.transfer import Stylizer as Stylizer
    from stylize.transfer import transfer_style as transfer_style

__version__ = "0.1.0"

_MODULES = {
    "Request": "request",
    "Step": "request",
    "StyleConfig": "config",
    "StyleResult": "request",
    "Stylizer": "transfer",
    "StylizeError": "errors",
    "transfer_style": "transfer",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'stylize' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stylize.{_MODULES[name]}"), name)
