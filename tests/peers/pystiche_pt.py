"""Runs pystiche's `image_optimization` with the same objective under `recorder`; see compare.py.

python pystiche_pt.py CONTENT STYLE FOLDER EVALUATIONS EVERY MINUTES
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from pathlib import Path

import recorder
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

# pystiche 1.0.1 reads a table of addresses that torchvision dropped; nothing is fetched here.
for name, urls in {"vgg": {"vgg16": "", "vgg19": ""}, "alexnet": {"alexnet": ""}}.items():
    importlib.import_module(f"torchvision.models.{name}").model_urls = urls  # type: ignore[attr-defined]
warnings.simplefilter("ignore")

from pystiche import enc, loss, optim  # noqa: E402

LAYERS = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu4_1": 512, "relu5_1": 512}


def main() -> None:
    content, style = (to_tensor(Image.open(path).convert("RGB"))[None] for path in sys.argv[1:3])
    folder = Path(sys.argv[3])
    evaluations, every, minutes = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    network = enc.vgg16_multi_layer_encoder(pretrained=False, internal_preprocessing=False)
    network.load_state_dict(recorder.caffe_weights(), strict=False)
    for block in range(1, 5):
        setattr(network, f"pool{block}", torch.nn.AvgPool2d(2))
    network.requires_grad_(False)
    before, after = enc.preprocessing("caffe"), enc.postprocessing("caffe")

    def gram(encoder: torch.nn.Module, weight: float) -> loss.GramLoss:
        return loss.GramLoss(encoder, score_weight=weight)

    # Its Gram matrices are over the positions only; neural-style's are over the channels too.
    shares = [100 / channels**2 for channels in LAYERS.values()]
    criterion = loss.PerceptualLoss(
        loss.FeatureReconstructionLoss(network.extract_encoder("relu4_2"), score_weight=5),
        loss.MultiLayerEncodingLoss(network, list(LAYERS), gram, layer_weights=shares),
    )
    criterion.set_content_image(before(content))
    criterion.set_style_image(before(style))

    def picture(x: torch.Tensor) -> Image.Image:
        return to_pil_image((after(x)[0].clamp(0, 1) * 255).round().byte())

    recorder.record(folder, picture, evaluations=evaluations, every=every, minutes=minutes)
    with contextlib.suppress(recorder.Done):
        optim.image_optimization(
            content, criterion, num_steps=evaluations + 1, preprocessor=before, quiet=True
        )


if __name__ == "__main__":
    main()
