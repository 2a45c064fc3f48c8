"""What several test files need: a small pair of demo slides, real slides beside the checkout, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiledblend.demo.tissue import Slides, make_slides

ROOT = Path(__file__).parents[1]

LONG = {
    *("test_cloud", "test_cluster", "test_crash", "test_google_store", "test_memory_group", "test_mutants"),
    *("test_ometiff", "test_real_stores", "test_reuse", "test_sending", "test_shared_machine", "test_stops"),
    *("test_store", "test_faults", "test_unstored", "test_view", "test_workflows"),
}
"""Files that start clusters, stores, browsers or whole runs by the dozen: each of their tests is `slow`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in LONG:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Slides:
    """Two stains of 1000 x 1000 px (no multiple of a tile) and their mask at 1/16."""
    return make_slides(tmp_path_factory.mktemp("slides"), 1000, seed=2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real slides are not beside this checkout")
    return folder


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("tiledblend: error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


Command = Callable[..., Ran]


@pytest.fixture
def tiledblend(tmp_path: Path) -> Command:
    """Runs the real command as a process, in the test's own folder."""

    def run(*arguments: object, stdin: None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "tiledblend", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command inside this process: for what needs no cluster."""
    from tiledblend.cli.main import run_command

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
