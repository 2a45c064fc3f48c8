"""The README is true: its Python runs, its commands parse, .ci/run takes its test command from it, its files exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tiledblend.cli.main import cli
from tiledblend.describe.schema import check
from tiledblend.describe.text import parse_mapping

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and line[0] == "tiledblend"]


def test_python_example_runs_as_a_script(tmp_path: Path) -> None:
    (example,) = blocks("python")
    script = tmp_path / "example.py"
    script.write_text(example + "\nprint(report.shape, lazy.shape, lazy.dtype)\n", "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "(600, 800) (3, 600, 800) uint8\n"
    assert (tmp_path / "out.ome.zarr" / "zarr.json").is_file()


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_commands_parse(line: list[str]) -> None:
    verb = cli.commands[line[1]]
    verb.make_context(line[1], line[2:], resilient_parsing=False).close()


def test_job_file_follows_the_schema() -> None:
    for block in blocks("yaml"):
        check(parse_mapping(block, where="README.md"))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    starts = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python3 -m venv")]
    assert len(starts) == 2
    assert starts[0].endswith("tiledblend demo")
    assert starts[1].endswith("-m pytest -q")
    assert "grep -m1 '^python3 -m venv tb-test ' README.md" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert starts[1].startswith("python3 -m venv tb-test ")


def test_links_and_pictures_exist() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "workflows/README.md"):
        path = ROOT / name
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            if not target.startswith("https://"):
                assert (path.parent / target).is_file(), f"{name}: {target}"
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 400_000
