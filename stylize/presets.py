"""Named settings, as a table in the text form of the command line. Imports nothing.

What a preset does not name has the default that stands in `stylize.config.StyleConfig`.
"""

from collections.abc import Mapping

__all__ = ["PRESETS"]

# The defaults of the best-known implementation (jcjohnson/neural-style). It divides Gram
# matrices by N*M and weighs each layer by 100: with G/M here, that is 100/N^2 for the
# N = 64, 128, 256, 512, 512 channels, so 64:16:4:1:1 of a sum of 100 * 86 / 512^2.
_NEURAL_STYLE = {
    "content_weight": "5",
    "style_weight": str(100 * 86 / 512**2),
    "tv_weight": "0.001",
    "tv_reduction": "sum",
    "content_layers": "relu4_2",
    "style_layers": "relu1_1:64,relu2_1:16,relu3_1:4,relu4_1:1,relu5_1:1",
    "relative": "false",
    "feature_scale": "caffe",
    "pooling": "max",
    "padding": "zeros",
    "init": "noise",
    "noise": str(0.001 / 255),
    "history": "100",
    "steps": "1000",
    "clamp": "false",
    "coarse_content": "1",
    "focus": "0",
    "spread": "0",
    "motifs": "1",
    "margins": "keep",
    "scales": "1",
    "plateau": "0",
}

PRESETS: Mapping[str, Mapping[str, str]] = {
    # The best picture for the time: coarse to fine, from the photograph in the style's colours.
    # Each layer's style loss is over what the start has of it, so that a style in strong contrasts
    # does not drown the subject, nor one near the photograph's own statistics leave it as it is.
    # relu2_1 and relu3_1, the strokes, weigh most; twice as much drowns the subject of a strong
    # style. relu4_1 and relu5_1 have enough to make whole swirls. The coarse scales, which decide
    # where things are, hold on to the photograph four times as strongly, and all hold on to what
    # stands out in it more than to walls and skies. At first each quarter is to be painted: else
    # a sky without clouds stays a photograph, for the rest has the pattern.
    "default": {},
    # Seconds, to look at.
    "draft": {"size": "256", "steps": "40"},
    # Gatys, Ecker, Bethge 2015, with convX_Y read as reluX_Y (their network rectifies in place).
    # Departure: the sums' constants 1/2 and 1/4 are dropped for means, and content_weight is
    # K * alpha/beta with K = 100, here for alpha/beta = 1e-3, so that alpha/beta from 1e-5 to
    # 1e-2 spans figure 3: with the paper's sums every column is the photograph, with plain
    # means every one is a texture.
    "paper": {
        "content_weight": "0.1",
        "style_weight": "1",
        "relative": "false",
        "feature_scale": "unit",
        "content_layers": "relu4_2",
        "style_layers": "relu1_1,relu2_1,relu3_1,relu4_1,relu5_1",
        "padding": "zeros",
        "init": "noise",
        "steps": "500",
        "clamp": "false",
        "coarse_content": "1",
        "focus": "0",
        "spread": "0",
        "motifs": "1",
        "margins": "keep",
        "scales": "1",
        "plateau": "0",
    },
    "neural-style": _NEURAL_STYLE,
    # The same without what differs between programs: the objective that speed is measured on.
    "neural-style-bench": {
        **_NEURAL_STYLE,
        "pooling": "average",
        "init": "content",
        "tv_weight": "0",
        "steps": "300",
    },
}
