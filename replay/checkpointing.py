"""Reverb's checkpoints, kept safe from Reverb.

Reverb keeps one checkpoint, the last by name, deletes every other entry of its folder, never verifies,
and refuses to start on a damaged one. So its folder holds nothing else and is only a place to write:

    FOLDER/<digest>/<Reverb's name>/                 Reverb's own, at most one
    FOLDER/<digest>.kept/<number>-<Reverb's name>/   the two newest verified ones, hard-linked
    FOLDER/<digest>.kept/<number>-<Reverb's name>.json   size and SHA-256 of each of their files
    FOLDER/quarantine/                               what could not be loaded

`digest` changes with specs and tables, since Reverb restores a table's old settings with its data.
Numbers count up, so that the order does not depend on the clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from replay.errors import CheckpointFailed, CheckpointUnloadable, ForeignEntries

log = structlog.get_logger()

NUM_KEPT = 2
_REVERB_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T[0-9:.+-]+")
_KEPT_NAME = re.compile(r"(\d{6,})-(\d{4}-\d{2}-\d{2}T[0-9:.+-]+)")
_FINISHED = "DONE"


class Prepared(NamedTuple):
    """What the server will start from."""

    loaded: str | None  # the checkpoint's name
    degraded: str | None  # why something newer was not used


class CheckpointStore:
    """The checkpoints of one digest of specs and tables."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.live = folder / digest
        self._kept = folder / f"{digest}.kept"
        self._quarantine = folder / "quarantine"
        self.live.mkdir(parents=True, exist_ok=True)
        self._kept.mkdir(exist_ok=True)
        self._refuse_foreign_entries()
        for stage in self._kept.glob("*.stage"):
            shutil.rmtree(stage)

    def prepare(self, try_load: Callable[[Path], None]) -> Prepared:
        """Leave in Reverb's folder the newest checkpoint that `try_load` can load, or nothing.

        `try_load` gets a folder like Reverb's and raises CheckpointUnloadable. What cannot be loaded goes to
        quarantine.
        """
        self.discard_unfinished()
        self._adopt()
        degraded: list[str] = []
        for number, name in reversed(self._numbered()):
            kept = self._kept / f"{number:06d}-{name}"
            try:
                self._verify(kept)
                self._place(kept, name)
                try_load(self.live)
            except (CheckpointUnloadable, CheckpointFailed) as error:
                log.error("a replay checkpoint is put aside", name=name, reason=str(error))
                degraded.append(f"{name}: {error}")
                self._put_aside(kept, name)
                continue
            return Prepared(name, "; ".join(degraded) or None)
        self._clear_live()
        return Prepared(None, "; ".join(degraded) or None)

    def keep(self, path: Path) -> None:
        """Verify what Reverb has just written to `path`, and keep it; raise CheckpointFailed."""
        self._require_finished(path)
        numbered = self._numbered()
        number = numbered[-1][0] + 1 if numbered else 1
        target = self._kept / f"{number:06d}-{path.name}"
        stage = target.with_name(f"{target.name}.stage")
        try:
            files = {}
            stage.mkdir()
            for file in sorted(path.iterdir()):
                files[file.name] = _describe(file)
                _link(file, stage / file.name)
                _sync(stage / file.name)
            _sync(stage)
            manifest = target.with_name(f"{target.name}.json")
            manifest.write_text(json.dumps({"files": files}, indent=1))
            _sync(manifest)
            stage.rename(target)
            _sync(self._kept)
        except (OSError, CheckpointFailed) as error:
            shutil.rmtree(stage, ignore_errors=True)
            target.with_name(f"{target.name}.json").unlink(missing_ok=True)
            raise CheckpointFailed(f"{path} could not be kept: {error}") from error
        for old_number, name in self._numbered()[:-NUM_KEPT]:
            old = self._kept / f"{old_number:06d}-{name}"
            shutil.rmtree(old)
            old.with_name(f"{old.name}.json").unlink(missing_ok=True)

    def make_way(self) -> None:
        """Take out of Reverb's folder all entries, which are kept elsewhere.

        For a clock that went back: Reverb then deletes its new checkpoint, because its name sorts first.
        """
        self._adopt()
        self._clear_live()

    def discard_unfinished(self) -> None:
        """Delete what Reverb began to write and could not finish: it would go on to fill the disk."""
        for entry in self.live.iterdir():
            if not (entry / _FINISHED).exists():
                log.warning("an unfinished replay checkpoint is deleted", name=entry.name)
                shutil.rmtree(entry)

    def _refuse_foreign_entries(self) -> None:
        foreign = [
            entry.name
            for entry in sorted(self.live.iterdir())
            if entry.is_symlink() or not entry.is_dir() or not _REVERB_NAME.fullmatch(entry.name)
        ]
        if foreign:
            raise ForeignEntries(
                f"{self.live}: expected nothing but Reverb's checkpoints, found {foreign}; Reverb would "
                "delete its own checkpoints because of them. Move them away"
            )

    def _numbered(self) -> list[tuple[int, str]]:
        """Return number and name of the checkpoints kept, oldest first."""
        matches = [_KEPT_NAME.fullmatch(entry.name) for entry in self._kept.iterdir()]
        return sorted((int(match[1]), match[2]) for match in matches if match)

    def _adopt(self) -> None:
        """Keep finished checkpoints that were not kept before the process ended."""
        known = {name for _, name in self._numbered()}
        for entry in sorted(self.live.iterdir()):
            if entry.name not in known and (entry / _FINISHED).exists():
                try:
                    self.keep(entry)
                except CheckpointFailed as error:
                    log.error("a replay checkpoint is put aside", reason=str(error))
                    self._move_aside(entry)

    def _place(self, kept: Path, name: str) -> None:
        self._clear_live()
        target = self.live / name
        target.mkdir()
        for file in kept.iterdir():
            _link(file, target / file.name)

    def _put_aside(self, kept: Path, name: str) -> None:
        kept.with_name(f"{kept.name}.json").unlink(missing_ok=True)
        self._move_aside(kept)
        shutil.rmtree(self.live / name, ignore_errors=True)

    def _move_aside(self, path: Path) -> None:
        self._quarantine.mkdir(exist_ok=True)
        target, number = self._quarantine / path.name, 1
        while target.exists():
            target, number = self._quarantine / f"{path.name}-{number}", number + 1
        path.rename(target)

    def _clear_live(self) -> None:
        for entry in self.live.iterdir():
            shutil.rmtree(entry)

    @staticmethod
    def _require_finished(path: Path) -> None:
        if not (path / _FINISHED).exists():
            raise CheckpointFailed(f"Reverb reported {path}, which is not there or not finished")

    def _verify(self, kept: Path) -> None:
        """Compare sizes and SHA-256 with the manifest; raise CheckpointFailed."""
        self._require_finished(kept)
        try:
            expected = json.loads(kept.with_name(f"{kept.name}.json").read_text())["files"]
            found = {file.name: _describe(file) for file in kept.iterdir()}
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointFailed(f"it cannot be verified: {error}") from error
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointFailed(
                    f"{name}: expected {expected.get(name)}, found {found.get(name)}"
                )


def _describe(path: Path) -> dict[str, int | str]:
    if not path.is_file():
        raise CheckpointFailed(f"{path.name} is not a plain file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
