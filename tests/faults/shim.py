"""The other side of `shim.c`: build it, turn its switches, and undo what a power cut loses."""

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
CONTROL_BYTES = 32
_NOTE = struct.Struct("=4q")


class NoCompiler(Exception):
    """Power cuts, full disks and wrong clocks need a C compiler and Linux; the text says so."""


def build(directory: Path) -> Path:
    """Compile the shim into a directory and return the library. Raises: NoCompiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("power cuts, full disks and wrong clocks need a C compiler: install gcc")
    library = directory / "shim.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoCompiler(f"{compiler} cannot build the shim: {done.stderr.strip()[:500]}")
    library.chmod(0o755)
    return library


class Shim:
    """The switches of one group of processes that share a control file."""

    def __init__(self, library: Path, directory: Path, watch: Path | None = None) -> None:
        """`watch`: whose files can be full or lose what was not fsynced; None: only the clock."""
        self._journal = directory / "journal"
        self._journal.mkdir(parents=True)
        # The servers run as another account when the test runs as root.
        self._journal.chmod(0o777)
        control = directory / "control"
        control.write_bytes(bytes(CONTROL_BYTES))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), CONTROL_BYTES)
        self._watch = watch
        self.environ = {
            "LD_PRELOAD": str(library),
            "VF_SHIM_CONTROL": str(control),
            "VF_SHIM_JOURNAL": str(self._journal),
        }
        if watch is not None:
            self.environ["VF_SHIM_WATCH"] = os.path.realpath(watch)

    def set_clock(self, offset_s: float) -> None:
        """Put the wall clock of the processes ahead (or back) at once."""
        self._set(0, int(offset_s * 1_000_000_000))

    def fill_disk(self, is_full: bool) -> None:
        """Let writes fail with ENOSPC, after one torn write, or let them through again."""
        self._set(1, int(is_full))

    def watch_writes(self, is_on: bool) -> None:
        """Begin to note what is written, forgetting what was noted before; or stop it."""
        self._set(2, 0)
        for file in self._journal.iterdir():
            file.unlink()
        self._set(2, int(is_on))

    def unsynced_bytes(self) -> int:
        """Return the size of the notes a power cut would act upon just now."""
        return sum(
            max(0, notes.stat().st_size - _synced_to(notes))
            for notes in self._journal.glob("*.undo")
        )

    def lose_unsynced(self) -> "Loss":
        """Undo every noted write that no fsync followed. The processes must be dead.

        Returns what was lost. Nothing was noted before `watch_writes`, so that is kept.
        """
        assert self._watch is not None
        files = {entry.stat().st_ino: Path(entry.path) for entry in _files_below(self._watch)}
        loss = Loss(0, 0)
        for notes in self._journal.glob("*.undo"):
            path = files.get(int(notes.stem))
            if path is None:
                continue
            found = list(_notes_in(notes.read_bytes()[_synced_to(notes) :]))
            for note in reversed(found):
                _undo(path, note)
                loss = Loss(loss.writes + 1, loss.bytes + note.length)
        return loss

    def close(self) -> None:
        """Let go of the switches; they stay as they are."""
        self._map.close()

    def _set(self, index: int, value: int) -> None:
        self._map[8 * index : 8 * index + 8] = value.to_bytes(8, "little", signed=True)


class Loss(NamedTuple):
    """What a power cut took."""

    writes: int
    bytes: int


class _Note(NamedTuple):
    offset: int
    length: int
    old_size: int
    old: bytes


def _synced_to(notes: Path) -> int:
    """Return up to where a file's notes are on disk for sure."""
    marks = notes.with_suffix(".mark")
    return max(map(int, marks.read_text().split()), default=0) if marks.exists() else 0


def _notes_in(data: bytes) -> Iterator[_Note]:
    at = 0
    # The last note may be cut: its writer was killed before it wrote anything else.
    while at + _NOTE.size <= len(data):
        offset, length, old_length, old_size = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        if at + old_length > len(data):
            return
        yield _Note(offset, length, old_size, data[at : at + old_length])
        at += old_length


def _undo(path: Path, note: _Note) -> None:
    with path.open("r+b") as file:
        file.seek(note.offset)
        file.write(note.old)
        file.flush()
        if note.offset + note.length > note.old_size:
            file.truncate(note.old_size)


def _files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry
