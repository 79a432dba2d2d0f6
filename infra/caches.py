"""Where what is made once and can be made again is kept: compiled kernels and exported graphs.

numba keeps compiled kernels beside the source, or where NUMBA_CACHE_DIR says. Where the installation is read-only, it
looks for a home, and without one importing a kernel fails. `choose_kernel_folder` then finds a place first:

    NUMBA_CACHE_DIR          as it is set
    beside the source        where that can be written: nothing is changed
    the user's cache         XDG_CACHE_HOME or ~/.cache, in ouzel/kernels
    the temporary folder     said once: it may be gone tomorrow, and then kernels are compiled again

Child processes inherit the choice. numba's cache files are code to whoever loads them: a folder that another user owns
or may write to is never taken.
"""

import os
import sys
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
_INSTALLED = Path(__file__).resolve().parent


def choose_kernel_folder() -> None:
    """Set NUMBA_CACHE_DIR where numba's own choice would fail; call it before numba is imported."""
    if os.environ.get(VARIABLE) or _beside_the_source():
        return
    folder = cache_folder("kernels")
    os.environ[VARIABLE] = str(folder)
    if (numba := sys.modules.get("numba")) is not None:
        numba.config.CACHE_DIR = str(folder)
    if folder.is_relative_to(tempfile.gettempdir()):
        print(
            f"compiled kernels are kept in {folder}: the installation and the home folder cannot be written; set "
            f"{VARIABLE} to a folder that stays",
            file=sys.stderr,
        )


def cache_folder(name: str) -> Path:
    """A folder of this user's that can be written: in the user's cache, else in the temporary folder. Made if absent.

    Raises PermissionError where neither can be had.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = Path(tempfile.gettempdir()) / f"ouzel-{os.getuid()}"
    for folder in (Path(root) / "ouzel" / name, temporary / name):
        if _is_ours(folder):
            return folder
    raise PermissionError(f"neither {root} nor {temporary} can be written; set XDG_CACHE_HOME to a folder that can")


def _beside_the_source() -> bool:
    cache = _INSTALLED / "__pycache__"
    return os.access(cache if cache.is_dir() else _INSTALLED, os.W_OK)


def _is_ours(folder: Path) -> bool:
    """Make the folder; whether it, and the one above, belong to this user and nobody else may write to them."""
    if not folder.is_absolute():
        return False
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owners = [place.stat() for place in (folder, folder.parent)]
    except OSError:
        return False
    return os.access(folder, os.W_OK) and all(s.st_uid == os.getuid() and not s.st_mode & 0o022 for s in owners)
