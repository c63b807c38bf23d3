"""Gives commands their options: those of `options.Options`, and one for each setting.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.console import Refused
from pipeline.options import Options, option_of
from pipeline.records import join_styles, split_styles
from stylize.config import SETTINGS, StyleConfig, as_text

__all__ = [
    "LIMITS",
    "WEIGHTS",
    "Json",
    "ManifestArgument",
    "OutArgument",
    "default_out",
    "from_manifest",
    "with_options",
]

ManifestArgument = Annotated[
    str, typer.Argument(help="csv, tsv, jsonl or parquet with the columns content and style")
]
OutArgument = Annotated[str, typer.Argument(help="output folder of a run")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable, on standard output")]

WEIGHTS = ("weights", "weights_convention")
LIMITS = ("max_side", "max_megapixels")
"""Options that several commands take."""

Command = Callable[..., Any]
"""A command as Python sees it; its signature is what typer reads."""


def with_options(*names: str, **own: str) -> Callable[[Command], Command]:
    """Give a command the options of `Options` that are named, and one for each setting.

    The command gets an `Options` as `options`, and the settings that were used as `settings`, a
    mapping in text form. `own` are defaults of this command instead of `StyleConfig`'s.
    A command without a parameter `settings` gets none.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        takes_settings = "settings" in signature.parameters
        generated = ("options", "settings")
        parameters = [p for p in signature.parameters.values() if p.name not in generated]
        parameters += [_option_parameter(name) for name in names]
        if takes_settings:
            parameters += [_CONFIG_FILE, *_setting_parameters(own)]

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            if takes_settings:
                file = arguments.pop("config", None)
                given = {name: arguments.pop(name) for name in SETTINGS}
                used = {name: text for name, text in given.items() if text is not None}
                arguments["settings"] = _merged(own, file, used)
            values = {name: arguments.pop(name) for name in names}
            if "only" in values:  # typer gives a list, or None
                values["only"] = tuple(values["only"] or ())
            return command(**arguments, options=Options(**values))

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


# --- the options of a run ---


def _option_parameter(name: str) -> inspect.Parameter:
    option, kind, default = option_of(name)
    flags = [f"--{name.replace('_', '-')}", *([option.short] if option.short else [])]
    checks: dict[str, Any] = {}
    if kind in (int, float):
        checks = {"min": option.least, "max": option.most}
    if option.words:
        checks["callback"] = _one_of(option.words)
    if option.variable:
        checks["envvar"] = option.variable
    typed: Any = kind
    if kind is tuple:
        typed, default = list[str] | None, None
    annotation = Annotated[typed, typer.Option(*flags, help=option.help, **checks)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    """Return the check of an option whose values are few."""

    def check(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"{value!r} is not {', '.join(words[:-1])} or {words[-1]}")
        return value

    return check


def default_out(manifest: str) -> str:
    """Return the manifest's name without its ending: OUT lies beside it."""
    from pipeline import storage

    local = storage.local_path(manifest)
    if local is not None:
        return os.path.splitext(local)[0]
    return storage.without_ending(manifest)


# --- settings ---

_CONFIG_FILE = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None, typer.Option(help="TOML file with settings; all options override it")
    ],
)


def _setting_parameters(own: Mapping[str, str]) -> list[inspect.Parameter]:
    defaults = {name: as_text(name, value) for name, value in vars(StyleConfig()).items()}
    defaults |= own
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    help=f"{setting.help} ({setting.limit})",
                    metavar="VALUE",
                    rich_help_panel="Settings (also as columns of the manifest)",
                    show_default=defaults[name] or False,
                ),
            ],
        )
        for name, setting in SETTINGS.items()
    ]


def _merged(
    own: Mapping[str, str], file: Path | None, options: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings in text form, later ones winning: the command's own defaults, the config
    file, --preset, other options."""
    from stylize.presets import PRESETS

    values = dict(own)
    if file is not None:
        values |= _read_config_file(file)
    preset = PRESETS.get(options.get("preset", ""), {})
    return {**{n: t for n, t in values.items() if n not in preset}, **options}


def _read_config_file(file: Path) -> dict[str, str]:
    import tomllib

    try:
        loaded = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"--config {file}: {error}") from error
    values = {}
    for name, value in loaded.items():
        try:
            values[name] = as_text(name, value)
        except ValueError as error:
            unknown = "there is no such setting; write each as NAME = VALUE, in no table"
            reason = error if name in SETTINGS else unknown
            raise Refused(f"--config {file}: {name}: {reason}") from error
    return values


def from_manifest(settings: Mapping[str, str], manifest: str) -> dict[str, str]:
    """Return the settings with their paths made relative to the manifest's folder, like those in
    the manifest."""
    from pipeline.manifest.writer import relative_path
    from stylize.config import INIT_WORDS

    def moved(path: str) -> str:
        if not path or path in INIT_WORDS or os.path.isabs(path):
            return path
        return relative_path(path, os.path.dirname(manifest))

    values = dict(settings)
    for name in ("init", "mask", "style_mask"):
        if name in values:
            paths = (values[name],) if name == "init" else split_styles(values[name])
            values[name] = join_styles(moved(path) for path in paths)
    return values
