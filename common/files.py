"""Reading and writing files, without torch."""
import io
import json
import os
import zipfile
from pathlib import Path

from common.errors import InputError
from common.text import one_line


def read_bytes(path, expected):
    """Returns the bytes of a file. Raises InputError if it is missing or unreadable."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected {expected}, found: {error.strerror}") from None


def read_json(path, expected):
    """Returns the content of a JSON file, a dict. Raises InputError if it is missing, unreadable or no dict."""
    try:
        content = json.loads(read_bytes(path, expected))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        return content
    except ValueError as error:
        raise InputError(f"{path}: expected {expected}, found: {one_line(error)}") from None


def write_files(contents):
    """Writes {path: bytes} atomically: temporary files, then renames; creates missing folders. Raises InputError."""
    temporary = {}
    try:
        for path, content in contents.items():
            os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
            temporary[path] = f"{os.path.realpath(path)}.{os.getpid()}.tmp"
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            if os.path.isdir(path):
                raise InputError(f"{path}: expected a file to write, found a folder")
        for path in contents:
            os.replace(temporary[path], os.path.realpath(path))
    except OSError as error:
        raise InputError(f"{path}: expected a writable path for {len(contents[path]):,} bytes, found: "
                         f"{error.strerror}") from None
    finally:
        for path in temporary.values():
            if os.path.exists(path):
                os.remove(path)


def zip_bytes(files, executable=()):
    """Returns the bytes of a deterministic zip of `files`, {path in the zip: bytes}; `executable` paths get mode
    755."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the earliest date that a zip knows
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
