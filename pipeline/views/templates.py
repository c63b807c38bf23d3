"""Pages from the templates in ``assets``. Standard library only."""

from __future__ import annotations

import importlib.resources
import string

__all__ = ["asset", "fill"]


def asset(name: str) -> str:
    """Return the text of a file in ``assets``."""
    return importlib.resources.files("pipeline").joinpath("assets", name).read_text("utf-8")


def fill(template: str, **values: object) -> str:
    """Return a template's text with each ``$name`` replaced by its value.

    A $ in a value stays as it is. Values are not escaped, so the caller escapes text that is not
    markup.
    """
    return string.Template(asset(template)).substitute(values)
