"""Runs the notebooks and keeps their outputs: `make notebooks`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def executed(path: Path, *, timeout: int = 100) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run, in its own folder, without network or tracing.

    Args:
        path: The notebook.
        timeout: Seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as private:
        # Nothing of the user's own Jupyter is read or written, and nothing is traced.
        own = {"IPYTHONDIR": private, "JUPYTER_RUNTIME_DIR": private, "JUPYTER_CONFIG_DIR": private}
        env = (
            os.environ | own | {"LANGSMITH_TRACING": "false", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        )
        quiet = ["--IPKernelApp.log_level=ERROR"]  # it would warn of talking over this machine's loopback
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            extra_arguments=quiet,
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(cwd=str(HERE), env=env)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # which Python it was says nothing
    return notebook


def main() -> None:
    """Run the notebooks that are named, or all, and write their outputs into them."""
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or NOTEBOOKS
    for path in chosen:
        begun = time.perf_counter()
        nbformat.write(executed(path), path)
        print(f"{path.name}: {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
