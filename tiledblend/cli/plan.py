"""`tiledblend plan`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tiledblend.cli.mapping import built, checked_output, cluster_of, is_image, storing_of
from tiledblend.cli.options import (
    cluster_options,
    debug_option,
    json_option,
    layer_options,
    output_options,
    reuse_option,
)
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.errors import TiledblendError, UsageError

if TYPE_CHECKING:
    from tiledblend.describe.job import Job
    from tiledblend.run.options import ClusterOptions
    from tiledblend.run.plan import Plan


@click.command(cls=Verb)
@layer_options
@output_options
@cluster_options
@reuse_option
@click.option("--exact", is_flag=True, help="Classify every tile by its masks instead of a sample.")
@json_option
@debug_option
def command(exact: bool, reuse: str | None, as_json: bool, **flags: Any) -> None:
    """What blend would do: tiles, chunk classes, bytes, memory; or why it would refuse. Writes nothing."""
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.place import SUFFIX
    from tiledblend.containers.ozx.name import UNFINISHED, is_ozx_path
    from tiledblend.look import lines as report
    from tiledblend.look.pictures import without_pyramid
    from tiledblend.run.ometiff import checked_target, plan_ometiff
    from tiledblend.run.ozx import planned_for
    from tiledblend.run.plan import plan

    resumes(False)
    report.start_logging(debug=is_debugging())
    cluster = cluster_of(flags)
    job = built(flags)
    if job.path is not None:
        checked_output(job.path)
    is_tiff = job.path is not None and is_ometiff_path(job.path)
    if is_tiff:
        target = checked_target(job.path or "")
        planned = plan_ometiff(job.composite, target, job.output, storing_of(job), exact=exact)
    else:
        planned = plan(job.composite, job.output, exact=exact)
    is_ozx = job.path is not None and is_ozx_path(job.path)
    if is_ozx:
        planned = planned_for(planned, job.path or "")
    if job.path is not None and is_image(job.path):
        planned = replace(planned, notes=(*planned.notes, *without_pyramid(job.path, job.composite.shape)))
    document = planned.as_dict(job.path) | {"requests": planned.requests(job.path)}
    text = report.plan_text(planned, cluster, job.path)
    if is_tiff:
        document["work_bytes"] = planned.work_bytes
        text += f"\n{report.room_text(f'{job.path}{SUFFIX}', planned)}"
    if is_ozx:
        document["work_bytes"] = 2 * planned.raw_bytes
        text += f"\n{report.ozx_room_text(f'{job.path}{UNFINISHED}', planned)}"
    if reuse is not None:
        from tiledblend.run.machine import cpu_count
        from tiledblend.run.reuse import plan_reuse

        found = plan_reuse(planned, reuse, threads=cpu_count())
        document["reuse"] = found.as_dict()
        text += f"\n{report.reuse_text(found)}"
    if not as_json:
        # Before the output is looked at: a bucket may take its time.
        show(text)
        sys.stdout.flush()
    refused = _refusal(job, planned, cluster)
    if as_json:
        show(json.dumps(document | {"refused": refused}))
    elif refused is not None:
        show(f"refused  {refused}")


def _refusal(job: Job, planned: Plan, cluster: ClusterOptions) -> str | None:
    """Why blend, with the same flags, would not begin; None where it would."""
    from tiledblend.bytes.waiting import ANSWER_SECONDS, asked
    from tiledblend.containers.output import refuse_taken
    from tiledblend.describe.fingerprint import stored_paths
    from tiledblend.look.pictures import check_image_output
    from tiledblend.run.options import threads_of

    composite, path = job.composite, job.path

    def look(path: str) -> None:
        if is_image(path):
            has_alpha = composite.has_alpha
            check_image_output(path, composite.shape, composite.channels, composite.dtype, has_alpha=has_alpha)
        else:
            refuse_taken(path, planned.layout, stored_paths(composite))

    try:
        if path is not None:
            # A store that does not answer would be asked for minutes, as a run asks it.
            asked(partial(look, path), seconds=ANSWER_SECONDS)
        if path is None or not is_image(path):
            memory, remedy = cluster.memory_of_each()
            planned.require_memory(threads_of(cluster), memory, remedy, path)
    except UsageError:
        raise
    except TimeoutError as error:
        return f"{path}: {error}"
    except TiledblendError as error:
        return str(error)
    return None
