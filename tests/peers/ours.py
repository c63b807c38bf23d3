"""Runs our own program on the objective of the comparison, keeping pictures; see compare.py.

python ours.py CONTENT STYLE FOLDER EVERY [NAME=VALUE ...]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from stylize import weights
from stylize.config import StyleConfig, parse_setting
from stylize.image import to_image
from stylize.stages import plan_stages
from stylize.transfer import Step, Stylizer


def main() -> None:
    content, style, folder, every = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    settings = dict(argument.split("=", 1) for argument in sys.argv[5:])
    config = StyleConfig.of(
        settings.pop("preset", "neural-style-bench"),
        **{name: parse_setting(name, value) for name, value in settings.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    stylizer = Stylizer(weights.load())
    stylizer.encoder(config)
    from PIL import Image

    stages = plan_stages(Image.open(content).size, config)
    first = sum(stage.evaluations for stage in stages[:-1])  # evaluations at coarser scales
    seconds: list[float] = []
    kept = 0.0  # seconds spent on keeping pictures

    def on_step(step: Step, image: torch.Tensor) -> None:
        nonlocal kept
        seconds.append(step.seconds - kept)
        at = step.step - first
        if at > 0 and (at % every == 0 or step.step == config.steps):
            began = time.perf_counter()
            to_image(image).save(folder / f"{step.step:04d}.png")
            kept += time.perf_counter() - began

    result = stylizer.transfer(content, style, config, on_step=on_step)
    result.save(folder / "result.png")
    (folder / "seconds.json").write_text(json.dumps(seconds))
    facts = {"settings": json.loads(config.to_json()), "dtype": str(stylizer.dtype)}
    facts["seconds"] = result.seconds - kept
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
