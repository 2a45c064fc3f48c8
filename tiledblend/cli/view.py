"""`tiledblend view`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from tiledblend.cli.mapping import looked_at
from tiledblend.cli.options import debug_option, inputs_option, json_option, layer_options
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show


@click.command(cls=Verb)
@layer_options
@inputs_option
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Of 127.0.0.1; 0 takes a free one. [8421]")
@click.option("--open/--no-open", "in_browser", default=False, help="Open the page in this machine's browser.")
@json_option
@debug_option
def command(port: int | None, in_browser: bool, inputs: bool, as_json: bool, **flags: Any) -> None:
    """A local page to look at a result, or at what blend would make of the same flags, before it is made.

    Works offline, for this machine only; from elsewhere through ssh -L 8421:127.0.0.1:8421 HOST. Ctrl-C ends it.
    """
    from tiledblend.look import lines as report
    from tiledblend.look.tiles import Gallery
    from tiledblend.look.view import serve
    from tiledblend.run.machine import cpu_count

    resumes(False)
    report.start_logging(debug=is_debugging())
    result, origin = looked_at(flags, inputs=inputs)
    if result is not None:
        gallery = Gallery.of_result(result, origin.composite, origin.note)
    else:
        assert origin.composite is not None
        gallery = Gallery.of_composite(origin.composite)

    def ready(url: str) -> None:
        show(json.dumps({"url": url}) if as_json else url)
        sys.stdout.flush()
        if in_browser:
            click.launch(url)

    serve(gallery, port=port, threads=cpu_count(), ready=ready)
    report.say("ended")
