"""Commands on one picture: pair, explain, show. Imports torch only inside command bodies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import LIMITS, WEIGHTS, Json, with_options
from pipeline.console import Refused, say, tell
from pipeline.options import Options
from pipeline.records import split_styles

__all__ = ["explain_command", "pair_command", "show_command"]

_SINGLE = [*WEIGHTS, "device", "dtype", "threads", "tile", "compile", *LIMITS]


@with_options(*_SINGLE)
def pair_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting, or several: a.jpg|b.jpg")],
    out: Annotated[str, typer.Option("--out", "-o", help="file to write, like painted.png")],
    options: Options,
    settings: Mapping[str, str],
) -> None:
    """Paint one pair; no Ray, no index."""
    from pipeline import single
    from stylize.config import FORMATS

    if Path(out).suffix.lower() not in FORMATS:
        raise Refused(f"-o {out}: the ending must be one of {', '.join(FORMATS)}")
    if os.path.isdir(out):
        raise Refused(f"-o {out}: it is a folder; give the file to write, like painted.png")
    styles, suffix = split_styles(style), Path(out).suffix
    pair = single.read(content, styles, settings, options.limits, suffix=suffix)
    stylizer = single.make_stylizer(pair.config.backbone, options)
    tell(single.paint(pair, out, stylizer))


@with_options(*_SINGLE, size="256")
def explain_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting")],
    out: Annotated[str, typer.Option("--out", "-o", help="folder to write")],
    options: Options,
    settings: Mapping[str, str],
    layers: Annotated[
        str, typer.Option(help="layers of the feature maps; by default those of the losses")
    ] = "",
) -> None:
    """Paint one pair and show how: Gram matrices, feature maps, losses by layer, a film."""
    from pipeline import single
    from pipeline.explain import explain, parse_layers

    wanted = parse_layers(layers)
    pair = single.read(content, [style], settings, options.limits)
    stylizer = single.make_stylizer(pair.config.backbone, options)
    tell(explain(pair, out, stylizer, wanted))


def show_command(
    picture: Annotated[str, typer.Argument(help="a picture that this program made")],
    inputs: Annotated[
        str, typer.Option(help="folder to look for photograph and style in, if they have moved")
    ] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="file that the printed command shall write")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show how a picture was made, and the command that makes it again."""
    from pipeline.show import show

    shown = show(picture, inputs, out)
    if as_json:
        tell(json.dumps({**shown.facts, "command": shown.command, "notes": shown.notes}, indent=1))
        return
    for name, text in shown.facts.items():
        tell(f"{name:15}{text}")
    for remark in shown.notes:
        say(remark)
    tell("")
    tell(shown.command)
