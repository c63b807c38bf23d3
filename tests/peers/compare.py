"""Other people's programs and ours side by side: loss against seconds, on the same two cores.

    python tests/peers/compare.py --pair CONTENT STYLE -o FOLDER

runs `neural-style`, `pystiche` (--peers) and ours one after another on pictures that are brought
to one size first, from the same weights, each in a process of its own. What they save on the way
is judged afterwards by evaluate.py, which shares no code with any of them. Run the same command
again to go on where `--minutes` cut it off; `--plot` joins all pairs found in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import evaluate
from PIL import Image

HERE = Path(__file__).parent
PEERS = {"neural-style": "neural_style_pt.py", "pystiche": "pystiche_pt.py"}
MARKS = (100, 200, 300, 500)  # evaluations of the peer at which the two are compared

SETTINGS = {
    "init": "matched",
    "clamp": "true",
    "history": "60",  # 100 take a twentieth more time each, 20 need a tenth more evaluations
    # relu5_1 is under 0.01 % of this objective and a sixth of its work: ours leaves it out, the
    # judge does not.
    "style_layers": "relu1_1:64,relu2_1:16,relu3_1:4,relu4_1:1",
    "style_weight": str(100 * 85 / 512**2),
}
"""Ours, on top of the preset `neural-style-bench`: how the objective is minimised."""


def prepare(path: str, size: int, target: Path) -> None:
    """The picture with its longest side at `size`, by Lanczos, so that no program resizes."""
    image = Image.open(path).convert("RGB")
    scale = size / max(image.size)
    new = (round(image.width * scale), round(image.height * scale))
    image = image if new == image.size else image.resize(new, Image.Resampling.LANCZOS)
    image.save(target)


def run(program: str, *arguments: object, threads: int) -> None:
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    subprocess.run(command, check=True, env=environment)


def judge(folder: Path, three: bool = False) -> None:
    """losses.json of every program's pictures in a pair's folder; what is there is not redone."""
    objective = None
    content, style = (Image.open(folder / f"{name}.png") for name in ("content", "style"))
    for pictures in sorted(path for path in folder.iterdir() if path.is_dir()):
        kept = pictures / "losses.json"
        losses = json.loads(kept.read_text()) if kept.exists() else {}
        for path in sorted(pictures.glob("[0-9]*.png")):
            if path.stem not in losses:
                objective = objective or evaluate.Objective(content, style)
                losses[path.stem] = objective(Image.open(path).convert("RGB"))
                kept.write_text(json.dumps(losses, indent=0))
        last = max(losses)
        if three and f"{last}/2" not in losses:
            values = evaluate.three_scales(content, style, Image.open(pictures / f"{last}.png"))
            losses |= {f"{last}/2": values[1], f"{last}/4": values[2]}
            kept.write_text(json.dumps(losses, indent=0))


def curve(pictures: Path) -> list[tuple[int, float, float]]:
    """Evaluations, seconds and loss of each picture that a program saved."""
    seconds = json.loads((pictures / "seconds.json").read_text())
    losses = json.loads((pictures / "losses.json").read_text())
    return [
        (int(name), seconds[int(name) - 1], loss)
        for name, loss in sorted(losses.items())
        if name.isdigit()
    ]


def report(out: Path) -> list[dict[str, object]]:
    """Each pair's ratios, printed; all curves in curves.csv."""
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pair", "program", "evaluations", "seconds", "loss"])
        for log in sorted(out.glob("*/*/losses.json")):
            for row in curve(log.parent):
                writer.writerow([log.parent.parent.name, log.parent.name, *row])
    rows: list[dict[str, object]] = []
    for peer in sorted(path for name in PEERS for path in out.glob(f"*/{name}")):
        ours = curve(peer.parent / "ours")
        for evaluations, seconds, loss in curve(peer):
            if evaluations not in MARKS:
                continue
            row = {"pair": peer.parent.name, "peer": peer.name, "evaluations": evaluations}
            row |= {"loss": round(loss), "seconds": round(seconds, 1)}
            there = next(((n, s) for n, s, other in ours if other <= loss), None)
            if there is not None:
                row |= {"ours": there[0], "ours_seconds": round(there[1], 1)}
                row["ratio"] = round(seconds / there[1], 1)
            rows.append(row)
    for row in rows:
        after = f"{row['loss']:>8} after {row['evaluations']} evaluations, {row['seconds']} s"
        reached = "not reached by ours"
        if "ratio" in row:
            reached = f"ours after {row['ours']}, {row['ours_seconds']} s: {row['ratio']}x"
        print(f"{row['pair']:32} {row['peer']:13} {after}; {reached}")
    (out / "ratios.json").write_text(json.dumps(rows, indent=1))
    return rows


def plot(out: Path) -> None:
    """loss.png: a panel a pair, loss against seconds, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    folders = sorted({path.parent.parent for path in out.glob("*/ours/losses.json")})
    figure, axes = plt.subplots(
        1, len(folders), figsize=(5 * len(folders), 4.2), squeeze=False, layout="constrained"
    )
    for axis, folder in zip(axes[0], folders, strict=True):
        for name in ("ours", *PEERS):
            if (folder / name / "losses.json").exists():
                points = curve(folder / name)
                axis.loglog([p[1] for p in points], [p[2] for p in points], ".-", label=name)
        axis.set(title=folder.name, xlabel="seconds")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            scale.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0][0].set_ylabel("loss of the saved picture")
    figure.savefig(out / "loss.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar="PICTURE")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["neural-style"])
    parser.add_argument("--size", type=int, default=384, help="longest side, pixels")
    parser.add_argument("--evaluations", type=int, default=300, help="of each peer")
    parser.add_argument("--ours", type=int, default=220, help="evaluations of ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="for ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8, help="stop after; go on next time")
    parser.add_argument("--three-scales", action="store_true", help="of each last picture, too")
    parser.add_argument("--plot", action="store_true", help="only report and plot what is there")
    parser.add_argument("-o", "--out", type=Path, required=True)
    asked = parser.parse_args()
    ends = time.monotonic() + 60 * asked.minutes
    unfinished = False
    for content, style in [] if asked.plot else asked.pair:
        folder = asked.out / f"{Path(content).stem} x {Path(style).stem}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [folder / "content.png", folder / "style.png"]
        for source, target in zip((content, style), pictures, strict=True):
            prepare(source, asked.size, target)
        if not (folder / "ours" / "seconds.json").exists():
            settings = {**SETTINGS, "size": str(asked.size), "steps": str(asked.ours)}
            settings |= dict(setting.split("=", 1) for setting in asked.set)
            text = [f"{name}={value}" for name, value in settings.items()]
            run("ours.py", *pictures, folder / "ours", 5, *text, threads=asked.threads)
        for peer in asked.peers:
            last = folder / peer / f"{asked.evaluations:04d}.png"
            left = (ends - time.monotonic()) / 60
            if not last.exists() and left > 0:
                plan = (asked.evaluations, 25, left)
                run(PEERS[peer], *pictures, folder / peer, *plan, threads=asked.threads)
            unfinished |= not last.exists()
        if not unfinished:
            judge(folder, asked.three_scales)
    if unfinished:
        print("not finished: run the same command again")
        return
    report(asked.out)
    plot(asked.out)


if __name__ == "__main__":
    main()
