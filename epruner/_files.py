"""Writing files so that a failure leaves neither half a file nor a damaged older one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def check_source(path: str | os.PathLike[str]) -> Path:
    """A path to read from.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is a folder or no ordinary file.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not source.is_file():
        raise ValueError(f"{path} is {'a folder' if source.is_dir() else 'no ordinary file'}")
    return source


def check_target(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Resolve a path to write to; raise now what would otherwise be raised after the work.

    Raises
    ------
    FileExistsError
        When there is a file and it must not be overwritten.
    FileNotFoundError
        When the folder does not exist.
    PermissionError
        When the folder cannot be written to.
    ValueError
        When the path exists and is no ordinary file.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        message = f"cannot write {path}: no folder {target.parent}; create it first"
        raise FileNotFoundError(message)
    if target.exists() and not target.is_file():
        raise ValueError(f"cannot write {path}: it exists and is not an ordinary file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; --force overwrites it")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: folder {target.parent} is not writable")
    return target


def check_folder(path: str | os.PathLike[str]) -> Path:
    """A folder to write files to, which need not exist yet.

    Raises
    ------
    FileNotFoundError
        When the folder above does not exist.
    PermissionError
        When it cannot be made, or written to.
    ValueError
        When the path exists and is no folder.
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{path} is a file, and a folder is needed")
        if not folder.parent.is_dir():
            raise FileNotFoundError(f"cannot make {path}: no folder {folder.parent}")
    if not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        raise PermissionError(f"cannot write to the folder {path}")
    return folder


def write_atomically(target: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``target``, then rename it.

    Raises
    ------
    OSError
        When writing fails; the temporary file is gone and an older target untouched.
    """
    with open_atomically(target) as file:
        file.write(data)


@contextmanager
def open_atomically(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``target`` that is renamed once all is written.

    Raises
    ------
    OSError
        When writing fails. As after any other exception, the temporary file is gone and an older
        target untouched.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            message = f"cannot write {target}: {error.strerror or error}; nothing was written"
            raise OSError(error.errno, message) from error
        raise
