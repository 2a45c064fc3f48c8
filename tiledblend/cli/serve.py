"""`tiledblend serve`."""

from __future__ import annotations

import json
import sys

import click

from tiledblend.cli.options import debug_option, json_option
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show


@click.command(cls=Verb)
@click.argument("result", metavar="OUT")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Of 127.0.0.1; 0 takes a free one. [8422]")
@json_option
@debug_option
def command(result: str, port: int | None, as_json: bool) -> None:
    """Serve a result's files to web viewers in this machine's browser, while you look: ranges and CORS, 127.0.0.1 only.

    The address that is printed is what Vizarr, neuroglancer or another page is given. Ctrl-C ends it.
    """
    from tiledblend.look import lines as report
    from tiledblend.look.serving import serve_result

    resumes(False)
    report.start_logging(debug=is_debugging())

    def ready(url: str) -> None:
        show(json.dumps({"url": url}) if as_json else url)
        sys.stdout.flush()

    serve_result(result, port=port, ready=ready)
    report.say("ended")
