"""`tiledblend info`."""

from __future__ import annotations

import json
from typing import Any

import click

from tiledblend.bytes.buckets import redacted
from tiledblend.cli.options import debug_option, json_option
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import show
from tiledblend.errors import BadInputError, one_line


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@json_option
@debug_option
def command(paths: tuple[str, ...], as_json: bool) -> int:
    """What a source is: format, size, levels, pixel size; whether it can be a layer, or why not."""
    from tiledblend.look.info import describe, render_info

    entries: list[dict[str, Any]] = []
    code = 0
    for path in paths:
        try:
            found = describe(path)
        except BadInputError as error:
            click.echo(f"tiledblend: error: {redacted(one_line(str(error)))}", err=True)
            code = error.exit_code
            continue
        entries += found
        if not as_json:
            show(render_info(found))
    if as_json:
        show(json.dumps({"images": entries}, default=str))
    return code
