"""The part of a manifest that one of several drivers paints. Standard library only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stylize.errors import ConfigError

__all__ = ["MOST_SHARDS", "Shard", "parse_shard"]

MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`. Which pairs it has depends on their ids alone."""

    number: int  # from 1
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Its form in names of files."""
        return f"{self.number}-of-{self.count}"

    def has(self, pair_id: str) -> bool:
        """Return whether a pair belongs to this part."""
        digest = hashlib.sha256(pair_id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1


def parse_shard(text: str, environ: Mapping[str, str]) -> Shard | None:
    """Return the part that ``--shard`` names; None for the whole, which ``1/1`` is, too.

    ``slurm`` stands for the part of this task of a Slurm array, by `environ`. Raises `ConfigError`.
    """
    if not text:
        return None
    if text == "slurm":
        shard = _of_slurm(environ)
    else:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise ConfigError(f"--shard is {text!r}; write it like 1/3, or slurm")
        shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.number <= shard.count <= MOST_SHARDS:
        raise ConfigError(
            f"--shard is {shard}; the parts of n are 1/n to n/n, and n is at most {MOST_SHARDS}"
        )
    return shard if shard.count > 1 else None


def _of_slurm(environ: Mapping[str, str]) -> Shard:
    names = ("ID", "COUNT", "MIN", "STEP")
    given = {name: environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names}
    if not given["ID"].isdigit() or not given["COUNT"].isdigit():
        raise ConfigError(
            "--shard slurm: SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT are not set; start it "
            "with sbatch --array=1-N, or write --shard 1/3"
        )
    task, count = int(given["ID"]), int(given["COUNT"])
    least, step = (int(given[name] or default) for name, default in (("MIN", 1), ("STEP", 1)))
    number, rest = divmod(task - least, max(1, step))
    if rest or not 0 <= number < count:
        raise ConfigError(
            f"--shard slurm: the array has {count} tasks, and this one is number {task}, counted "
            f"from {least}; give the array ids without gaps, like --array=1-{count}"
        )
    return Shard(number + 1, count)
