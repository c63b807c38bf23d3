"""Pages made from the templates in ``assets``. Standard library only."""

from __future__ import annotations

import importlib.resources
import string

__all__ = ["asset", "fill"]


def asset(name: str) -> str:
    """The text of a file in ``assets``."""
    return importlib.resources.files("pipeline").joinpath("assets", name).read_text("utf-8")


def fill(template: str, **values: object) -> str:
    """A template's text with each ``$name`` replaced, in one pass: a $ in a value stays as it is.

    Values are put in as they are; text that is no markup must have been escaped.
    """
    return string.Template(asset(template)).substitute(values)
