"""Help in sections: an option says in which one it stands."""

from __future__ import annotations

from typing import Any

import click

SECTIONS = ("Options", "What", "Mask and edge", "Place", "Output", "Running", "Cluster", "Reporting")
"""In the order of `-h`; a verb's own options come first, `-h` itself last."""


class Option(click.Option):
    """An option with the section of the help that it stands in."""

    def __init__(self, *arguments: Any, section: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.section = section


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Verb(click.Command):
    """A command whose help is in sections."""

    def __init__(self, name: str | None, **keywords: Any) -> None:
        # click keeps the first help option that it makes, with whatever names the group gave then.
        super().__init__(name, HELP, **keywords)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every option under its section; click calls it while it writes the help."""
        rows: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
        for parameter in self.get_params(ctx):
            # Not an argument: the usage line says it, and click 8.5 would list it without a word.
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                rows[self._section(parameter)].append(row)
        for name, said in rows.items():
            if said:
                with formatter.section(name):
                    formatter.write_dl(said)

    def _section(self, parameter: click.Parameter) -> str:
        if isinstance(parameter, Option):
            return parameter.section
        return "Options" if parameter in self.params else "Reporting"
