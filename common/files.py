"""Reading and writing files, without torch."""
import io
import json
import os
import zipfile
from pathlib import Path

from common.errors import InputError
from common.text import one_line


def read_bytes(path, what):
    """Bytes of a file. Raises InputError that calls the missing or unreadable file `what`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected {what}, found: {error.strerror}") from None


def read_json(path, what):
    """Content of a JSON file, a dict. Raises InputError that calls what should be there `what`."""
    try:
        found = json.loads(read_bytes(path, what))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except ValueError as error:
        raise InputError(f"{path}: expected {what}, found: {one_line(error)}") from None


def write_files(payloads):
    """Atomic write of {path: bytes}: temporary files, then renames; missing folders are created. Raises InputError."""
    temporary = {}
    try:
        for path, payload in payloads.items():
            os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
            temporary[path] = f"{os.path.realpath(path)}.{os.getpid()}.tmp"
            with open(temporary[path], "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
        for path in payloads:
            if os.path.isdir(path):
                raise InputError(f"{path}: expected a file to write, found a folder")
        for path in payloads:
            os.replace(temporary[path], os.path.realpath(path))
    except OSError as error:
        raise InputError(f"{path}: expected a place to write {len(payloads[path]):,} bytes, found: "
                         f"{error.strerror}") from None
    finally:
        for name in temporary.values():
            if os.path.exists(name):
                os.remove(name)


def zip_bytes(files, executable=()):
    """Bytes of a zip with `files`, {path in the zip: bytes}, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the earliest date that a zip knows
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
