"""What a command knows of itself while it runs: --debug, whether --resume helps; and how it speaks."""

from __future__ import annotations

import click

from tiledblend.errors import printable

IF_WRITING = "; if it was writing a result, continue with --resume"


def show(text: str) -> None:
    """On stdout: what is said, whatever the names in it hold."""
    click.echo(printable(text))


def is_debugging() -> bool:
    """True with --debug."""
    return bool(click.get_current_context().find_root().obj["debug"])


def resumes(is_so: bool = True) -> None:
    """This command knows --resume, or (False) no error shall advise it. Unsaid: an error may, about another command's
    result, but not the line of an interruption."""
    click.get_current_context().find_root().obj["resumes"] = is_so


def can_resume() -> bool:
    """True unless `resumes(False)` was said."""
    context = click.get_current_context(silent=True)
    return context is None or context.find_root().obj["resumes"] is not False


def advised(line: str, resumes: bool | None) -> str:
    """The line, without the advice to --resume where there is none."""
    if not resumes:
        line = line.replace(IF_WRITING, "")
    return (
        line
        if resumes is not False
        else line.replace("continue with --resume", "start again").replace(" with --resume", "")
    )
