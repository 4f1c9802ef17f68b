"""Messages on disk, from which a run that was cut off goes on to the bit.

A checkpoint is a folder that all ranks reach. Each rank writes the messages of its rows to a file
of its own; once all have, rank 0 names these files in ``checkpoint.json``, and those of the
checkpoint before go. So whatever happens there is one that is whole. The number of ranks may be
another when it is read.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from epruner._files import open_atomically, write_atomically
from epruner.cluster import _native
from epruner.distributed.group import Array, Group

_FORMAT = 1
_LIST = "checkpoint.json"
# What is of the set, the same on all ranks, and what is of each point; the rest lies in lists.
_COMMON = ("iteration", "numbers", "prominent")
_LISTS = {
    "active_s": "n_active",
    "active_r": "n_active",
    "active_a": "n_active",
    "active_column": "n_active",
    "inactive_s": "n_inactive",
    "inactive_a": "n_inactive",
    "inactive_column": "n_inactive",
}

Saved = dict[str, Array]


@dataclass
class Checkpoint:
    """A folder for the messages of one run.

    Parameters
    ----------
    folder : Path
    every : int
        Iterations between two.
    run : dict
        What a run is told by, as JSON values; another run's messages are refused.
    group : Group
    starts : ndarray of shape (size + 1,)
        The first row of each rank.
    """

    folder: Path
    every: int
    run: dict[str, Any]
    group: Group
    starts: Array

    def write(self, active_set: _native.ActiveSet, preference: Array) -> None:
        """Write the messages of all ranks, after the same iteration."""
        group = self.group
        t, (first, last) = active_set.iteration, self._rows
        with group.agree():
            self.folder.mkdir(exist_ok=True)
            saved = active_set.save()
            for name in ("total", "availability"):
                saved[name] = saved[name][first:last]
            with open_atomically(self.folder / _name(t, first)) as file:
                arrays: dict[str, Any] = saved | {"preference_asked": preference}
                np.savez(file, **arrays)
        files = [_name(t, int(start)) for start in self.starts[:-1]]
        with group.agree():
            if group.rank == 0:
                facts = {"format": _FORMAT, "run": self.run, "starts": self.starts.tolist()}
                text = json.dumps(facts | {"iteration": t, "files": files}, indent=1)
                write_atomically(self.folder / _LIST, text.encode())
                for path in self.folder.glob("messages-*.npz"):
                    if path.name not in files:
                        path.unlink(missing_ok=True)

    def read(self) -> tuple[Saved, Array] | None:
        """Return the messages of the own rows and their preferences; None if there are none yet.

        Raises
        ------
        ValueError
            On all ranks, if what there is is damaged or another run's.
        """
        path, text = self.folder / _LIST, ""
        with self.group.agree():
            if path.exists():
                text = path.read_text()
        if len(set(self.group.gather_text(text))) > 1:
            raise ValueError(f"{path} is not the same on all ranks: name a folder that all reach")
        if not text:
            return None
        with self.group.agree():
            return self._read(path, text)

    @property
    def _rows(self) -> tuple[int, int]:
        first, last = self.starts[self.group.rank : self.group.rank + 2]
        return int(first), int(last)

    def _read(self, path: Path, text: str) -> tuple[Saved, Array]:
        try:
            facts = json.loads(text)
            known, starts, files = facts["run"], facts["starts"], facts["files"]
            whole = facts["format"] == _FORMAT and len(starts) == len(files) + 1
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no list of a checkpoint: {error}") from error
        if not whole:
            raise ValueError(f"{path} is of another version; remove the folder to begin anew")
        for name, value in self.run.items():
            if known.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds the messages of another run, whose {name} is "
                    f"{known.get(name)!r} and not {value!r}: name another folder, or remove it"
                )
        first, last = self._rows
        parts: list[Saved] = []
        for file, a, b in zip(files, starts[:-1], starts[1:], strict=True):
            try:
                with np.load(self.folder / file, allow_pickle=False) as archive:
                    begin, end = np.clip([first - a, last - a], 0, b - a)
                    parts.append(_part(archive, int(begin), int(end), b - a))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"{self.folder / file} is missing or damaged: {error}; remove the folder to "
                    "begin anew"
                ) from error
        saved = {
            name: parts[0][name]
            if name in _COMMON
            else np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
        return saved, saved.pop("preference_asked")


def digest(group: Group, n: int, *rows: Array) -> str:
    """What tells arrays with rows for n points from others, whatever the number of ranks."""
    block = _native.ActiveSet.block_rows(n)
    mine = [
        sha256(b"".join(np.ascontiguousarray(array[k : k + block]).tobytes() for array in rows))
        for k in range(0, len(rows[0]), block)
    ]
    everyone = group.gather_text("".join(found.hexdigest() for found in mine))
    return sha256("".join(everyone).encode()).hexdigest()


def _name(iteration: int, first_row: int) -> str:
    return f"messages-{iteration:06d}-{first_row:012d}.npz"


def _part(archive: Any, first: int, last: int, m: int) -> Saved:
    """What rows `first` to `last` of a file's m need of it; numbers of columns are for all."""
    counts = {name: archive[name] for name in ("n_active", "n_inactive")}
    width = archive["prominent"].size
    part: Saved = {}
    for name in archive.files:
        values = archive[name]
        if name in (*_COMMON, "total", "availability"):
            part[name] = values
        elif name in _LISTS:
            ends = np.concatenate([[0], np.cumsum(counts[_LISTS[name]])])
            part[name] = values[ends[first] : ends[last]]
        else:
            per_row = width if name == "bounds" else 1
            if values.size != m * per_row:
                raise ValueError(f"{name} is cut short")
            part[name] = values[first * per_row : last * per_row]
    return part
