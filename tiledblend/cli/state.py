"""What a command knows of itself while it runs: --debug, whether --resume helps; and how it speaks."""

from __future__ import annotations

import click

from tiledblend.errors import printable


def show(text: str) -> None:
    """On stdout: what is said, whatever the names in it hold."""
    click.echo(printable(text))


def is_debugging() -> bool:
    """True with --debug."""
    return bool(click.get_current_context().find_root().obj["debug"])


def cannot_resume() -> None:
    """This command, or what it writes, knows no --resume: no error shall advise it."""
    click.get_current_context().find_root().obj["resumes"] = False


def can_resume() -> bool:
    """False after `cannot_resume`."""
    context = click.get_current_context(silent=True)
    return context is None or bool(context.find_root().obj["resumes"])


def advised(line: str, resumes: bool) -> str:
    """The line, without the advice to --resume where there is none."""
    return line if resumes else line.replace("continue with --resume", "start again").replace(" with --resume", "")
