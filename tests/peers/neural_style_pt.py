"""Runs `neural-style` of PyPI (neural-style-pt), unchanged, under `recorder`; see compare.py.

python neural_style_pt.py CONTENT STYLE FOLDER EVALUATIONS EVERY MINUTES
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import recorder
import torch
from PIL import Image


def main() -> None:
    content, style, folder = (Path(argument).resolve() for argument in sys.argv[1:4])
    evaluations, every, minutes = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    folder.mkdir(parents=True, exist_ok=True)
    # It tells networks apart by numbers and words anywhere in the path, so the path is short.
    os.chdir(folder)
    if not Path("vgg16.pth").exists():
        torch.save(recorder.caffe_weights(), "vgg16.pth")
    options = {
        "content_image": content,
        "style_image": style,
        "image_size": max(Image.open(content).size),
        "gpu": "c",
        "pooling": "avg",
        "tv_weight": 0,
        "init": "image",
        "num_iterations": evaluations + 1,  # never reached, so it saves nothing itself
        "save_iter": 0,
        "print_iter": 0,
        "model_file": "vgg16.pth",
    }
    sys.argv = ["neural-style", "-disable_check"]
    for name, value in options.items():
        sys.argv += [f"-{name}", str(value)]
    from neural_style import neural_style as program

    def picture(x: torch.Tensor) -> Image.Image:
        return program.deprocess(x.clone())

    recorder.record(folder, picture, evaluations=evaluations, every=every, minutes=minutes)
    with contextlib.suppress(recorder.Done), contextlib.redirect_stdout(None):
        program.main()


if __name__ == "__main__":
    main()
