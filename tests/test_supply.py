"""What is shipped, and what it is shipped with: the wheel, the source archive, the pins of the images."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINNED = re.compile(
    r"^([a-z0-9.-]+)==([^\s;\\]+)((?:[^\n]*\\\n)(?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0"}


def pins(name: str) -> dict[str, str]:
    return {project: version for project, version, _ in PINNED.findall((ROOT / "docker" / name).read_text("utf-8"))}


@pytest.mark.parametrize("name", ["constraints.txt", "build.txt", "store.txt"])
def test_every_pin_has_its_hashes(name: str) -> None:
    text = (ROOT / "docker" / name).read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(lines) == len(pins(name)) > 0
    assert all(line.partition("==")[0] in pins(name) for line in lines)
    assert "://" not in text  # nobody's own index


def test_the_pins_of_the_image_resolve() -> None:
    """All that tiledblend[cloud] needs, and what that needs, is pinned, at versions that each of them takes."""
    pinned, seen = pins("constraints.txt"), set[str]()
    waiting = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cloud"]]
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{wanted} is not in docker/constraints.txt"
        assert wanted.specifier.contains(pinned[name], prereleases=True), f"{wanted}, but {name}=={pinned[name]}"
        if str(wanted) not in seen:
            seen.add(str(wanted))
            waiting += needs(name, wanted.extras)


def needs(project: str, extras: set[str]) -> list[str]:
    """What an installed project asks for in the image, without its markers; nothing of one that is not here."""
    with suppress(PackageNotFoundError):
        asked = [Requirement(text) for text in requires(project) or []]
        applies = [
            one.marker is None or any(one.marker.evaluate(IMAGE | {"extra": extra}) for extra in (*extras, ""))
            for one in asked
        ]
        return [str(one).partition(";")[0] for one, is_meant in zip(asked, applies, strict=True) if is_meant]
    return []


def tracked(folder: str) -> set[str]:
    """Files of the checkout: of git where it is one, else all that are no leftovers."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return set(done.stdout.splitlines())
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = wheel.read(f"{info}/METADATA").decode()
    of_package = {name for name in names if not name.startswith(f"{info}/")}
    assert of_package == tracked("tiledblend")
    assert {"tiledblend/py.typed", "tiledblend/describe/job.schema.json", "tiledblend/look/viewer/index.html"} <= names
    rest = {name.removeprefix(f"{info}/") for name in names - of_package}
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert not re.search(r"^(Requires-Dist|Project-URL).*(file:|git\+|http)", metadata, re.MULTILINE)


def test_the_source_archive_holds_what_the_tests_need_and_nothing_else(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    folders = tracked("tiledblend") | tracked("tests") | tracked("workflows")
    assert names - folders == {
        *("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", "PKG-INFO", ".gitignore")
    }
    assert folders <= names
