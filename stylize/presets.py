"""Presets: named groups of settings, in the text form of the command line.

A setting that a preset does not name has its default in `stylize.config.StyleConfig`. Standard
library only.
"""

from collections.abc import Mapping

__all__ = ["DESCRIPTIONS", "PRESETS"]

DESCRIPTIONS: Mapping[str, str] = {
    "default": "the best picture for its time",
    "draft": "a look within seconds",
    "paper": "close to the paper of 2015",
    "neural-style": "the defaults of the best-known implementation",
    "neural-style-bench": "the same, to compare speed with other programs",
}
"""What each preset is for."""

# The defaults of the best-known implementation (jcjohnson/neural-style). It divides Gram
# matrices by N*M, and weights each layer by 100. Here they are divided by M, so a layer's weight is
# 100/N^2 for N = 64, 128, 256, 512, 512 channels: shares 64:16:4:1:1 of a sum of 100 * 86 / 512^2.
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
    "content_norm": "1",
    "focus": "0",
    "spread": "0",
    "motifs": "1",
    "margins": "keep",
    "scales": "1",
    "plateau": "0",
}

PRESETS: Mapping[str, Mapping[str, str]] = {
    # The best picture for its time: coarse to fine, starting from the photograph in the style's
    # colours. Each layer's style loss is divided by its value at the start. So a style with strong
    # contrasts does not drown the subject, and one whose statistics are near the photograph's still
    # has an effect. relu2_1 and relu3_1, which see strokes, weigh most; twice the weight drowns the
    # subject under a strong style. relu4_1 and relu5_1 weigh enough to form whole swirls. Coarse
    # scales decide where things are, so they weigh the content four times as much; at all scales
    # what stands out in the photograph counts more than walls and skies. At first every quarter of
    # the picture has to be painted: otherwise a cloudless sky stays a photograph, because the rest
    # already has the pattern.
    "default": {},
    # A preview within seconds.
    "draft": {"size": "256", "steps": "40"},
    # Gatys, Ecker, Bethge 2015, with convX_Y read as reluX_Y (their network rectifies in place).
    # It departs from the paper in its weights: losses are means, without the constants 1/2 and 1/4,
    # and content_weight is 100 * alpha/beta, here for alpha/beta = 1e-3. So alpha/beta from 1e-5 to
    # 1e-2 spans figure 3. With the paper's sums every column of that figure is the photograph, and
    # with means and without the factor every column is a texture.
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
        "content_norm": "1",
        "focus": "0",
        "spread": "0",
        "motifs": "1",
        "margins": "keep",
        "scales": "1",
        "plateau": "0",
    },
    "neural-style": _NEURAL_STYLE,
    # The same without what programs do differently, to compare their speed on one objective.
    "neural-style-bench": {
        **_NEURAL_STYLE,
        "pooling": "average",
        "init": "content",
        "tv_weight": "0",
        "steps": "300",
    },
}
