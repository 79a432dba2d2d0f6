"""Where compiled kernels go when the installation or the home cannot be written."""

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from infra import caches


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """No cache of the user's can be made, and the temporary folder is this test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no-home")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"ouzel-{os.getuid()}"


def test_without_a_writable_home_the_cache_is_a_private_folder_among_the_temporary_ones(homeless):
    folder = caches.cache_folder("kernels")
    assert folder == homeless / "kernels"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_not_taken(homeless):
    (homeless / "kernels").mkdir(parents=True)
    (homeless / "kernels").chmod(0o777)
    with pytest.raises(PermissionError, match="XDG_CACHE_HOME"):
        caches.cache_folder("kernels")


def test_kernels_are_compiled_into_that_folder_where_the_source_cannot_be_written(tmp_path):
    """The first kernel of a package is imported after the folder was chosen, whichever package comes first."""
    code = (
        "import os; access = os.access\n"
        "os.access = lambda path, mode: access(path, mode) and '__pycache__' not in str(path)\n"
        "from stream.sampling import draw; draw(1, 2, 3)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": "/proc/no-home", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "set NUMBA_CACHE_DIR" in done.stderr
    assert list((tmp_path / f"ouzel-{os.getuid()}" / "kernels").rglob("sampling.draw*.nbi"))
