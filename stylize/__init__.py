"""Style transfer by image optimisation, as a library: `transfer_style` and `StyleConfig`.

    from stylize import transfer_style, StyleConfig

    result = transfer_style("photo.jpg", "painting.jpg", StyleConfig.of("default", size=512))
    result.save("painted.png")

Names are loaded when first used (PEP 562): naming `StyleConfig` does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylize.config import StyleConfig as StyleConfig
    from stylize.errors import StylizeError as StylizeError
    from stylize.transfer import Request as Request
    from stylize.transfer import Step as Step
    from stylize.transfer import StyleResult as StyleResult
    from stylize.transfer import Stylizer as Stylizer
    from stylize.transfer import transfer_style as transfer_style

__version__ = "0.1.0"

_HOMES = {
    "Request": "transfer",
    "Step": "transfer",
    "StyleConfig": "config",
    "StyleResult": "transfer",
    "Stylizer": "transfer",
    "StylizeError": "errors",
    "transfer_style": "transfer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stylize' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stylize.{_HOMES[name]}"), name)
