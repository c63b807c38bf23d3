"""Winograd's convolutions are the direct ones: outputs, gradients, at any size; and only in float32
on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from stylize.encoder import Encoder
from stylize.weights import Weights
from stylize.winograd import Winograd


@pytest.mark.parametrize(
    ("batch", "channels", "filters", "height", "width"),
    [
        (1, 128, 128, 64, 64),  # whole tiles, several strips
        (2, 128, 256, 37, 50),  # cut ones, a batch
        (1, 5, 3, 1, 1),
        (1, 4, 6, 3, 90),
        (1, 6, 4, 90, 2),
    ],
)
def test_outputs_and_gradients_are_those_of_the_direct_convolution(
    batch: int, channels: int, filters: int, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(filters, channels, 3, 3, generator=generator)
    bias = torch.randn(filters, generator=generator)
    slope = torch.randn(batch, filters, height, width, generator=generator)
    fast, exact = x.clone().requires_grad_(), x.double().requires_grad_()

    got = Winograd(weight)(fast, bias)
    wanted = F.conv2d(exact, weight.double(), bias.double(), padding=1)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert float(((got - wanted).norm() / wanted.norm()).detach()) < 5e-6
    torch.autograd.backward(F.relu_(got), slope)  # in place, as the encoder has it
    (gradient,) = torch.autograd.grad((wanted * slope)[got > 0].sum(), exact)
    assert fast.grad is not None
    assert float((fast.grad - gradient).norm() / gradient.norm()) < 5e-6


def test_the_encoder_takes_them_in_float32_where_they_pay(bundled: Weights) -> None:
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    layers = ["relu2_2", "relu3_3", "relu4_3"]
    exact = Encoder(bundled, winograd=True, dtype=torch.float64)
    wanted = exact(picture.double(), layers)
    assert not exact._winograds
    encoder = Encoder(bundled, winograd=True)
    encoder(picture[..., :16, :16], layers)
    assert not encoder._winograds  # too few tiles
    for layer, features in encoder(picture, layers).items():
        assert float((features - wanted[layer]).norm() / wanted[layer].norm()) < 1e-5
    assert set(encoder._winograds) == {
        "conv2_2",
        "conv3_1",
        "conv3_2",
        "conv3_3",
        "conv4_2",
        "conv4_3",
    }
