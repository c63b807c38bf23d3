"""Weights: brought to one convention, checked, refused by a clear error, downloaded once.

The downloads go over HTTP to a server on this machine. The networks are narrow: the importer
counts convolutions, not channels.
"""

import datetime
import hashlib
import http.server
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylize import weights
from stylize.encoder import Encoder
from stylize.errors import WeightsError
from stylize.layers import CONVS
from stylize.weights import BUNDLED


def narrow(backbone: str, channels: int = 4) -> dict[str, Tensor]:
    """A state dict with torchvision's names and few channels."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    place, incoming = 0, 3
    for count in {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}[backbone]:
        for _ in range(count):
            shape = (channels, incoming, 3, 3)
            state[f"features.{place}.weight"] = torch.randn(shape, generator=generator)
            state[f"features.{place}.bias"] = torch.randn(channels, generator=generator)
            place, incoming = place + 2, channels
        place += 1
    state["classifier.0.weight"] = torch.randn(5, 7, generator=generator)
    return state


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STYLIZE_CACHE", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("STYLIZE_OFFLINE", raising=False)
    return folder


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# Importing


@pytest.mark.parametrize("backbone", ["vgg16", "vgg19"])
def test_the_backbone_is_told_from_the_number_of_convolutions(
    backbone: str, tmp_path: Path, cache: Path
) -> None:
    torch.save(narrow(backbone), tmp_path / "a.pth")
    imported = weights.import_file(tmp_path / "a.pth")
    loaded = weights.load(imported)
    assert loaded.backbone == backbone
    assert tuple(loaded.filters) != ()
    assert set(loaded.filters) == set(loaded.biases) == set(CONVS[backbone])
    assert not loaded.bundled
    assert weights.identity(imported) == (backbone, loaded.sha256)
    assert weights.verify(imported) == loaded.sha256
    assert everything(cache) == [f"{backbone}-{loaded.sha256[:16]}.safetensors"]


def test_layers_are_taken_in_the_order_of_their_numbers(tmp_path: Path, cache: Path) -> None:
    state = narrow("vgg16")
    backwards = dict(sorted(state.items(), reverse=True))  # as text, features.5 is after .19
    torch.save(backwards, tmp_path / "a.pth")
    loaded = weights.load(weights.import_file(tmp_path / "a.pth"))
    # conv2_1 is torchvision's features.5 and conv5_3 its features.28.
    assert torch.equal(loaded.filters["conv2_1"], state["features.5.weight"])
    assert torch.equal(loaded.biases["conv5_3"], state["features.28.bias"])


def test_the_same_weights_in_two_formats_are_one(tmp_path: Path, cache: Path) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    save_file(narrow("vgg16"), tmp_path / "b.safetensors")
    first = weights.import_file(tmp_path / "a.pth")
    assert weights.import_file(tmp_path / "b.safetensors") == first
    assert len(everything(cache)) == 1


def test_torchs_default_type_changes_nothing(tmp_path: Path, cache: Path) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    first = weights.import_file(tmp_path / "a.pth")
    torch.set_default_dtype(torch.float64)
    try:
        assert weights.import_file(tmp_path / "a.pth") == first
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_file_in_the_projects_own_form_is_returned_as_it_is(cache: Path) -> None:
    assert weights.import_file(BUNDLED) == BUNDLED
    assert not cache.exists()


def first_layer(image: Tensor, convention: weights.Convention, folder: Path) -> Tensor:
    torch.save(narrow("vgg16"), folder / "a.pth")
    loaded = weights.load(weights.import_file(folder / "a.pth", convention))
    features: Tensor = Encoder(loaded)(image, ["conv1_1"])["conv1_1"]
    return features


def test_caffes_input_is_bgr_in_0_to_255_minus_the_mean(tmp_path: Path, cache: Path) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    state = narrow("vgg16")
    bgr = image.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    wanted = torch.conv2d(bgr, state["features.0.weight"], state["features.0.bias"], padding=1)
    got = first_layer(image, "caffe", tmp_path)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_torchvisions_input_is_rgb_normalised(tmp_path: Path, cache: Path) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    state = narrow("vgg16")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    normalised = (image - mean) / std
    wanted = torch.conv2d(
        normalised, state["features.0.weight"], state["features.0.bias"], padding=1
    )
    got = first_layer(image, "torchvision", tmp_path)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_with_another_mean_only_what_is_seen_beyond_the_edge_is_another_colour(
    tmp_path: Path, cache: Path
) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    loaded = weights.load(weights.import_file(tmp_path / "a.pth"))
    moved = loaded.with_mean()
    assert moved.mean == weights.CAFFE_MEAN != loaded.mean
    assert (moved.sha256, moved.backbone) == (loaded.sha256, loaded.backbone)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    got = Encoder(moved)(image, ["conv1_1"])["conv1_1"]
    # The network as it came, on a picture with a frame of that colour.
    colour = torch.tensor(weights.CAFFE_MEAN).view(1, 3, 1, 1)
    framed = torch.nn.functional.pad(image - colour, (1, 1, 1, 1)) + colour
    wanted = Encoder(loaded)(framed, ["conv1_1"])["conv1_1"][..., 1:-1, 1:-1]
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    as_it_came = Encoder(loaded)(image, ["conv1_1"])["conv1_1"]
    assert (as_it_came - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_the_bundled_network_keeps_its_mean_to_the_last_bit(bundled: weights.Weights) -> None:
    assert bundled.with_mean() is bundled


# What is no weights file


class Code:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, cache: Path) -> None:
    trace = tmp_path / "was run"
    torch.save({**narrow("vgg16"), "extra": Code(trace)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code(trace), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match=f"{name} cannot be read"):
            weights.import_file(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "b.pth").read_bytes())
    assert trace.exists()  # it would have


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"these are words, no weights\n" * 20])
def test_what_holds_no_tensors_is_refused(
    ending: str, content: bytes, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    for read in (weights.import_file, weights.load, weights.identity, weights.verify):
        with pytest.raises(WeightsError, match=f"a{ending}"):
            read(path)


def test_a_file_that_is_missing_is_refused(tmp_path: Path, cache: Path) -> None:
    for read in (weights.import_file, weights.load, weights.identity, weights.verify):
        with pytest.raises(WeightsError, match=r"none\.pth"):
            read(tmp_path / "none.pth")


def test_a_list_of_tensors_is_no_state(tmp_path: Path, cache: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth cannot be read"):
        weights.import_file(tmp_path / "a.pth")


def test_a_file_of_anything_but_tensors_is_refused_in_one_line(tmp_path: Path, cache: Path) -> None:
    torch.save({"when": datetime.datetime(2026, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth cannot be read") as refused:
        weights.import_file(tmp_path / "a.pth")
    assert "\n" not in str(refused.value)  # torch's own answer is a page


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


WRONG = {
    "15 convolutions": without(narrow("vgg19"), "features.0.weight"),
    "0 convolutions": {"classifier.0.weight": torch.zeros(2, 2)},
    # As resnet18 names them; there is no number before "weight".
    "20 convolutions": {f"layer{i}.conv1.weight": torch.zeros(4, 4, 3, 3) for i in range(20)},
    # The right number, with names that have no order or no biases.
    "13 oddly named": {f"layer{i}.conv1.weight": torch.zeros(4, 3, 3, 3) for i in range(13)},
    "13 without biases": {
        name: tensor for name, tensor in narrow("vgg16").items() if not name.endswith("bias")
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_another_network_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    torch.save(WRONG[name], tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        weights.import_file(tmp_path / "a.pth")
    assert "a.pth" in str(caught.value)
    if "oddly" not in name and "biases" not in name:
        assert f"{name}; vgg16 has 13 and vgg19 has 16" in str(caught.value)
    assert not cache.exists()


def test_the_wrong_backbone_is_refused(tmp_path: Path, cache: Path) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="has 13 convolutions"):
        weights.import_file(tmp_path / "a.pth", backbone="vgg19")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("features.0.weight", (4, 1, 3, 3), r"features.0.weight is \(4, 1, 3, 3\)"),
        ("features.7.weight", (4, 8, 3, 3), r"conv2_2 must be \(N, 4, 3, 3\)"),
        ("features.7.weight", (4, 4, 5, 5), r"features.7.weight is \(4, 4, 5, 5\)"),
        ("features.7.bias", (8,), r"with a bias \(8,\)"),
    ],
)
def test_a_layer_of_another_shape_is_refused(
    name: str, shape: tuple[int, ...], said: str, tmp_path: Path, cache: Path
) -> None:
    torch.save({**narrow("vgg16"), name: torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=said):
        weights.import_file(tmp_path / "a.pth")
    assert not cache.exists()


def test_a_network_with_batch_normalisation_is_refused(tmp_path: Path, cache: Path) -> None:
    torch.save({**narrow("vgg16"), "features.1.running_mean": torch.zeros(4)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a.pth has batch normalisation; use a vgg16"):
        weights.import_file(tmp_path / "a.pth")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be: refused to root too.
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("STYLIZE_CACHE", str(tmp_path / "cache"))
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"cannot be saved in .*cache.*set STYLIZE_CACHE"):
        weights.import_file(tmp_path / "a.pth")


def test_verify_notices_a_flipped_bit_of_any_tensor(tmp_path: Path, cache: Path) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    good = weights.import_file(tmp_path / "a.pth").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for place in (header, (header + len(good)) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 1
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(WeightsError, match=r"bad\.safetensors is damaged: its SHA-256"):
            weights.verify(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(good)
    assert weights.verify(tmp_path / "bad.safetensors")


def test_verify_refuses_a_file_cut_short_and_one_with_a_broken_header(
    tmp_path: Path, cache: Path
) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    good = weights.import_file(tmp_path / "a.pth").read_bytes()
    for bad in (good[: len(good) // 2], good[:5], good[:20] + b"\xff" + good[21:]):
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(WeightsError):
            weights.verify(tmp_path / "bad.safetensors")


def test_the_digest_is_of_names_shapes_and_values(tmp_path: Path) -> None:
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3.0])}
    assert weights.digest(a) == weights.digest(dict(reversed(a.items())))
    others = [
        {"x": torch.tensor([1.0, 2.5]), "y": a["y"]},
        {"z": a["x"], "y": a["y"]},
        {"x": a["x"].view(1, 2), "y": a["y"]},
        {"x": a["x"].half(), "y": a["y"]},
    ]
    assert weights.digest(a) not in [weights.digest(other) for other in others]


# Downloading


@dataclass
class Site:
    """A web server on this machine that serves one file, well or badly."""

    body: bytes
    stated_length: int | None = None  # other than the body's
    requests: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    """Serves the narrow VGG-19 under a name that ends in its hash, as torchvision's does."""
    file = Path(os.environ["STYLIZE_CACHE"]).with_name("narrow19.pth")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(narrow("vgg19"), file)
    site = Site(file.read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            self.send_response(200)
            length = len(site.body) if site.stated_length is None else site.stated_length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(site.body)

        def do_HEAD(self) -> None:
            site.requests.append(f"HEAD {self.path}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    sha256 = hashlib.sha256(site.body).hexdigest()
    site.url = f"http://127.0.0.1:{server.server_port}/models/vgg19-{sha256[:8]}.pth"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirror(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("STYLIZE_VGG19_URL", site.url)
    return site


def test_a_download_is_converted_kept_and_not_repeated(mirror: Site, cache: Path) -> None:
    lines: list[str] = []
    path = weights.find("vgg19", lines.append)
    assert len(lines) == 1
    assert "downloading VGG-19" in lines[0]
    loaded = weights.load(path)
    assert loaded.backbone == "vgg19"
    assert torch.equal(loaded.biases["conv5_4"], narrow("vgg19")["features.34.bias"])
    assert len(mirror.requests) == 1
    # Only the converted file is left; the second time nothing is fetched and nothing said.
    assert everything(cache) == [path.name]
    assert weights.find("vgg19", lines.append) == path
    assert weights.find("auto", lines.append) == path
    assert (len(mirror.requests), len(lines)) == (1, 1)


def test_a_long_download_says_how_far_it_is(
    mirror: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_TELL", 0)
    lines: list[str] = []
    weights.find("vgg19", lines.append)
    assert lines[-1] == f"downloading VGG-19: {len(mirror.body) / 2**20:.0f} MB so far"


def test_who_shows_a_bar_is_told_each_block_and_no_lines_come_besides(
    mirror: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_TELL", 0)
    lines: list[str] = []
    told: list[tuple[int, int]] = []
    weights.find("vgg19", lines.append, on_bytes=lambda *bytes_: told.append(bytes_))
    assert told[-1] == (len(mirror.body), len(mirror.body))
    assert len(lines) == 1
    assert "548 MB, once" in lines[0]
    assert str(cache) in lines[0]
    assert "choose --backbone vgg16" in lines[0]


def test_whether_it_can_be_fetched_is_known_without_fetching_it(
    mirror: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.vgg19_on_disk() is None
    assert weights.why_not_fetched() == ""
    assert [request.split("/")[0] for request in mirror.requests] == ["HEAD "]
    path = weights.fetch_vgg19()
    assert weights.vgg19_on_disk() == path
    monkeypatch.setenv("STYLIZE_VGG19_URL", "http://127.0.0.1:1/vgg19-00000000.pth")
    assert "refused" in weights.why_not_fetched()
    assert weights.vgg19_on_disk() is None
    monkeypatch.setenv("STYLIZE_OFFLINE", "1")
    assert weights.why_not_fetched() == "STYLIZE_OFFLINE forbids it"


def test_a_download_that_is_killed_leaves_nothing(mirror: Site, cache: Path) -> None:
    """The kill falls into the download: the line that leads to it comes once bytes have come."""
    code = """
import os, signal
from stylize import weights
weights._TELL = 0
def say(line):
    if "so far" in line:
        os.kill(os.getpid(), signal.SIGKILL)
weights.fetch_vgg19(say)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert everything(cache) == []


def refused(match: str) -> None:
    """`vgg19` is refused with this reason, and `auto` falls back, saying it in one line."""
    with pytest.raises(WeightsError, match=match):
        weights.find("vgg19")
    lines: list[str] = []
    assert weights.find("auto", lines.append) == BUNDLED
    assert lines[-1].startswith("using the bundled VGG-16: ")
    assert "\n" not in lines[-1]


def test_a_file_cut_on_the_way_is_refused_and_leaves_nothing(mirror: Site, cache: Path) -> None:
    whole = mirror.body
    mirror.body, mirror.stated_length = whole[: len(whole) // 2], len(whole)
    refused("downloaded damaged|cannot be downloaded")
    assert everything(cache) == []
    mirror.body = whole  # once the site is well again, so are we
    assert weights.load(weights.find("vgg19")).backbone == "vgg19"
    assert len(everything(cache)) == 1


def test_a_file_cut_at_its_source_is_refused_and_leaves_nothing(mirror: Site, cache: Path) -> None:
    mirror.body = mirror.body[: len(mirror.body) // 2]
    refused("downloaded damaged .*--weights")
    assert everything(cache) == []


def test_a_file_with_another_hash_is_refused_and_leaves_nothing(mirror: Site, cache: Path) -> None:
    mirror.body = mirror.body[:-1] + bytes([mirror.body[-1] ^ 1])
    refused("downloaded damaged")
    assert everything(cache) == []


def test_no_network_is_refused_with_the_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:  # a port on which nobody listens once this is closed
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STYLIZE_VGG19_URL", f"http://127.0.0.1:{port}/vgg19-00000000.pth")
    refused("cannot be downloaded .*--weights")
    assert everything(cache) == []


def test_a_page_that_is_not_there_is_refused(mirror: Site, cache: Path) -> None:
    mirror.body = b"<html>Log in to this network</html>"  # a hotel's answer to everything
    refused("downloaded damaged")
    assert everything(cache) == []


def test_an_unwritable_cache_is_refused_by_its_name(mirror: Site, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    refused("cache")
    assert cache.read_text() == "a file where the folder should be"


def test_offline_forbids_to_ask(mirror: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLIZE_OFFLINE", "1")
    refused("STYLIZE_OFFLINE forbids")
    assert mirror.requests == []
    monkeypatch.setenv("STYLIZE_OFFLINE", "0")
    path = weights.find("vgg19")
    monkeypatch.setenv("STYLIZE_OFFLINE", "1")
    assert weights.find("vgg19") == path  # what is there may be used


def test_torchs_own_cache_is_used_before_the_network(
    mirror: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STYLIZE_OFFLINE", "1")
    hub = Path(torch.hub.get_dir()) / "checkpoints" / mirror.url.rsplit("/", 1)[1]
    hub.parent.mkdir(parents=True)
    hub.write_bytes(mirror.body)
    path = weights.find("vgg19")
    assert weights.load(path).backbone == "vgg19"
    assert mirror.requests == []
    assert everything(cache) == [path.name]
    assert hub.exists()  # torch's file is torch's


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME", ""])
def test_torchs_own_cache_is_where_torch_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path))
    assert weights.hub_folder() == Path(torch.hub.get_dir())


def test_vgg16_is_the_bundled_file_without_a_word(cache: Path) -> None:
    lines: list[str] = []
    assert weights.find("vgg16", lines.append) == BUNDLED
    assert lines == []


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STYLIZE_CACHE", str(tmp_path))
    assert weights.cache_folder() == tmp_path
    monkeypatch.delenv("STYLIZE_CACHE")
    assert weights.cache_folder().name == "stylize-batch"


def test_the_converted_file_is_safetensors_that_others_can_read(
    tmp_path: Path, cache: Path
) -> None:
    torch.save(narrow("vgg16"), tmp_path / "a.pth")
    tensors = load_file(weights.import_file(tmp_path / "a.pth"))
    assert set(tensors) == {f"{c}.{part}" for c in CONVS["vgg16"] for part in ("weight", "bias")}
