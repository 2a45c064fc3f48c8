"""What the command says while it works and when it is done: lines, a progress bar, summaries."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from tiledblend.errors import one_line
from tiledblend.look.layer_lines import layers_text

if TYPE_CHECKING:
    from tiledblend.demo.demo import DemoReport
    from tiledblend.look.route import RouteReport
    from tiledblend.look.seams import Seam, Step
    from tiledblend.run.changes import Difference
    from tiledblend.run.ometiff import ExportReport
    from tiledblend.run.options import ClusterOptions
    from tiledblend.run.plan import Plan
    from tiledblend.run.report import ProgressEvent, RunReport
    from tiledblend.run.reuse import ReusePlan
    from tiledblend.sources.base import Unstored

SECONDS_BETWEEN_LINES = 5.0
MOST_TILES_TOLD = 20


def say(line: str) -> None:
    """A line for people, on stderr."""
    click.echo(f"tiledblend: {one_line(line)}", err=True)


class _StderrLog(logging.Handler):
    """Looks stderr up at every line: a progress bar puts its own in place while it is drawn. What was said of a mask is
    not said again when the report or a thumbnail looks at it, too."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if record.levelno == logging.INFO:
            line = f"note: {line}"
        if record.levelno > logging.INFO or line not in self._said:
            self._said.add(line)
            say(line)


def start_logging(*, debug: bool = False) -> None:
    """Show tiledblend's own log lines (what was decided about a mask, how it lies on its layer), and not dask's.

    Called before dask is imported: its loggers, and those of the workers that it starts, are set up from there.
    """
    if not debug:
        # A worker's own log of a failed task is a traceback; the command tells the same in one line.
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
        # What Python's helper process says when it tidies up after a driver that was killed.
        quiet, filters = "ignore:resource_tracker:UserWarning", os.environ.get("PYTHONWARNINGS", "")
        if quiet not in filters:
            os.environ["PYTHONWARNINGS"] = f"{filters},{quiet}".lstrip(",")
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    log = logging.getLogger("tiledblend")
    log.handlers = [*(handler for handler in log.handlers if not isinstance(handler, _StderrLog)), _StderrLog()]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def progress(doing: str = "blending") -> Iterator[Callable[[ProgressEvent], None]]:
    """A callback for `write`: a bar on a terminal, else a line every few seconds."""
    if sys.stderr.isatty():
        with _bar(doing) as update:
            yield update
    else:
        yield _Lines()


class Pace:
    """Rate and time left, from what this run has done itself (a resumed one begins with pixels done)."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def describe(self, event: ProgressEvent) -> str:
        """Such as "412 of 1,074 Mpx, 85 Mpx/s, 0:08 left"."""
        if self._first is None:
            one_tile = event.done_pixels / max(1, event.done_tiles)
            self._first = (round(event.done_pixels - one_tile), 0.0)
        done = event.done_pixels - self._first[0]
        rate = done / event.seconds if event.seconds > 0 else 0.0
        text = f"{event.done_pixels / 1e6:,.0f} of {event.pixels / 1e6:,.0f} Mpx, {rate / 1e6:,.1f} Mpx/s"
        left = event.pixels - event.done_pixels
        return f"{text}, {clock(left / rate)} left" if rate > 0 and left else text


class _Lines:
    def __init__(self) -> None:
        self._pace = Pace()
        self._last = time.monotonic()

    def __call__(self, event: ProgressEvent) -> None:
        text = self._pace.describe(event)
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(f"{100 * event.done_tiles // max(1, event.tiles)} %, {text}")


@contextmanager
def _bar(doing: str) -> Iterator[Callable[[ProgressEvent], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    pace = Pace()
    # One column: a narrow terminal cuts its end, and not the share as well.
    told = TextColumn("[progress.percentage]{task.percentage:>3.0f}%[/] {task.fields[pace]}")
    columns = (TextColumn(doing), BarColumn(), told)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None, pace="", visible=False)

        def update(event: ProgressEvent) -> None:
            bar.update(task, total=event.tiles, completed=event.done_tiles, pace=pace.describe(event), visible=True)

        yield update


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(8.2), clock(3725)
    ('0:08', '1:02:05')
    """
    whole = round(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def amount(count: float) -> str:
    """Bytes for people, in decimal units.

    >>> amount(512), amount(4.3e9)
    ('512 B', '4.3 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _size(shape: Sequence[int], channels: int, dtype: str) -> str:
    return f"{shape[0]:,} x {shape[1]:,} px (y x x), {counted(channels, 'channel', 'channels')} of {dtype}"


def counted(number: int, one: str, many: str) -> str:
    """A number of things.

    >>> counted(1, "level", "levels"), counted(1074, "tile", "tiles")
    ('1 level', '1,074 tiles')
    """
    return f"{number:,} {one if number == 1 else many}"


def run_text(done: RunReport) -> str:
    """What a run did, a few lines."""
    # a part or a resumed run has made only some of the pixels itself: no rate is told then
    took = f"{done.seconds:,.1f} s"
    if done.complete and done.tiles and not done.resumed_tiles:
        took = f"{done.pixels / 1e6:,.1f} Mpx in {took}, {done.pixels / max(done.seconds, 1e-9) / 1e6:,.0f} Mpx/s"
    if done.complete and not done.tiles:
        took = f"all tiles were complete already, nothing computed ({took})"
    chunks = done.chunks
    told = f"{chunks['copied']:,} copied, {chunks['blended']:,} blended, {chunks['empty']:,} skipped (empty)"
    lines = [
        done.uri,
        f"  size     {_size(done.shape, done.channels, done.dtype)}, {counted(done.levels, 'level', 'levels')}",
        f"  time     {took}",
        *([f"  chunks   {told}"] if done.tiles else []),
        f"  stored   {counted(done.objects, 'object', 'objects')}, {amount(done.bytes_written)}"
        if done.complete
        else f"  stored   {amount(done.bytes_written)} so far; it will be {counted(done.objects, 'object', 'objects')}",
    ]
    if done.tiles and done.resumed_tiles:
        lines.append(f"  resumed  {done.resumed_tiles:,} tiles were there already, {done.tiles:,} made now")
    if done.reused_tiles:
        taken = f"{amount(done.reused_bytes)} of the older result"
        lines.append(f"  reused   {done.reused_tiles:,} tiles, {taken}; {done.tiles - done.reused_tiles:,} made")
    if done.background_pixels:
        lines.append(f"  bare     {done.background_pixels:,} px where no layer had weight: background")
    if not done.complete:
        lines.append("  not complete yet: run the other parts, then the same command with --finish")
    return "\n".join(lines)


def export_text(done: ExportReport) -> str:
    """What an export did."""
    what = f"{_size(done.shape, done.channels, done.dtype)}, {counted(done.levels, 'level', 'levels')}"
    size = f"{done.compression}: {amount(done.bytes_written)}"
    if done.resumed_blocks == done.blocks:
        return f"{done.uri}: {what}, {size}; complete already and right, nothing computed"
    resumed = f", {done.resumed_blocks:,} blocks were there already" if done.resumed_blocks else ""
    passed, tiles = sum(level["passed"] for level in done.passed), sum(level["tiles"] for level in done.passed)
    took = f"; {100 * passed / tiles:.1f} % of its tiles passed as they are" if passed else ""
    return f"{done.uri}: {what}, {size} in {done.seconds:,.1f} s{resumed}{took}"


def ometiff_text(run: RunReport, file: ExportReport | None) -> str:
    """What a blend into an OME-TIFF did."""
    if file is None:
        return run_text(run)
    if file.resumed_blocks == file.blocks:
        return export_text(file)
    return f"{run_text(run)}\n  file     {export_text(file).partition(': ')[2]}"


def demo_text(done: DemoReport) -> str:
    """What the demo did."""
    return "\n".join(
        [
            f"slides made in {done.making_seconds:.1f} s",
            run_text(done.run),
            f"preview  {done.preview}",
        ]
    )


def image_text(result: dict[str, Any]) -> str:
    """What a blend into one image file did."""
    what = _size(result["shape"], result["channels"], result["dtype"])
    return f"{result['uri']}: {what}, {amount(result['bytes_written'])} in {result['seconds']:.1f} s"


def plan_text(planned: Plan, cluster: ClusterOptions, out: str | None = None) -> str:
    """What a run would do."""
    from tiledblend.run.options import threads_of

    facts, threads = planned.as_dict(), threads_of(cluster)
    each = f"each of {cluster.workers} processes" if (cluster.workers or 1) > 1 else "1 process"
    where = f"{each} of {counted(threads, 'thread', 'threads')}"
    classes = ", ".join(f"{100 * share:.1f} % {name}" for name, share in facts["classes"].items())
    how = "all tiles" if facts["exact"] else f"{facts['sampled_tiles']} sampled tiles"
    what = f"{_size(facts['shape'], facts['channels'], facts['dtype'])}, {counted(facts['levels'], 'level', 'levels')}"
    lines = [
        f"size     {what}",
        f"tasks    {counted(facts['tiles'], 'tile', 'tiles')} of {facts['shard']} px in chunks of {facts['chunk']} px",
        f"objects  {facts['objects']:,}",
        f"chunks   {classes} (from {how})",
        f"reads    about {amount(facts['read_bytes'])} of pixels",
        f"writes   {amount(facts['raw_bytes'])} before compression",
        f"memory   up to {amount(planned.process_bytes(threads, out))} in {where}",
    ]
    lines[1:1] = layers_text(planned.layers)
    requests = planned.requests(out)
    if any(requests.values()):
        lines.append(f"requests about {requests['get']:,} GET and {requests['put']:,} PUT")
    lines += [_passing_text(level) for level in facts["passing"]]
    lines += [f"note     {one_line(note)}" for note in facts["notes"]]
    return "\n".join([*lines, *(f"note     {_unstored_text(found)}" for found in planned.unstored.values())])


def reuse_text(found: ReusePlan) -> str:
    """The line of a plan that says what is taken from an older result."""
    if found.note:
        return f"reuse    {one_line(found.note)}"
    return (
        f"reuse    {counted(found.reused_tiles, 'tile', 'tiles')} of {found.older}; {found.made_tiles:,} will be made"
    )


def difference_text(found: Difference) -> str:
    """Which tiles of two results differ, and why."""
    count = f"{len(found.changed):,} of {counted(found.tiles, 'tile', 'tiles')} {_differ(found.tiles)}"
    lines = [f"{one_line(found.newer)}: {count}, {100 * found.share:.1f} % of the canvas"]
    lines += [f"  {reason:<9} {counted(number, 'tile', 'tiles')}" for reason, number in found.why.items()]
    lines += [f"  because   {one_line(said)}" for said in found.said]
    for change in found.changed[:MOST_TILES_TOLD]:
        at, same = change.region, " (the same bytes all the same)" if change.same_bytes else ""
        where = f"y {at.y0}..{at.y1}, x {at.x0}..{at.x1}"
        why = ", ".join(change.why) or "unknown"
        lines.append(f"  tile {change.tile.row}, {change.tile.column}: {where}: {why}{same}")
    if len(found.changed) > MOST_TILES_TOLD:
        lines.append(f"  and {len(found.changed) - MOST_TILES_TOLD:,} more; --json has all")
    return "\n".join(lines)


def _differ(number: int) -> str:
    return "differs" if number == 1 else "differ"


def _passing_text(level: dict[str, Any]) -> str:
    return (
        f"passes   level {level['level']}: {100 * level['passed_share']:.1f} % of {level['tiles']:,} tiles, "
        f"{amount(level['copied_bytes'])}; {level['decoded_pixels'] / 1e6:,.1f} Mpx decoded, "
        f"{level['encoded_pixels'] / 1e6:,.1f} Mpx encoded"
    )


def _unstored_text(found: Unstored) -> str:
    return f"{found}{'; a tile that needs one is refused without --allow-sparse' if found.refused else ''}"


def room_text(folder: str, planned: Plan) -> str:
    """The line of a plan that says how much room an OME-TIFF and its parts need."""
    return (
        f"room     up to {amount(planned.work_bytes)} until it is done, before compression: the file, whose parts are "
        f"in {folder} first, and the pixels of one small level"
    )


def ozx_room_text(folder: str, planned: Plan) -> str:
    """The line of a plan that says how much room an .ozx and its parts need."""
    return (
        f"room     up to {amount(2 * planned.raw_bytes)} until it is done, before compression: the file, and its parts "
        f"in {folder}"
    )


def four_digits(value: float) -> str:
    """Four digits, or all of a larger number's whole ones.

    >>> four_digits(6.30851), four_digits(17590.08), four_digits(0)
    ('6.309', '17,590', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def route_text(done: RouteReport) -> str:
    """Where the seam was saved, and what it is worth."""
    where = f"{done.path}: {counted(done.outlines, 'outline', 'outlines')}, routed at level {done.level}"
    if done.before is None or done.after is None:
        return where
    return f"{where}; step across the hard edge {four_digits(done.before)} before, {four_digits(done.after)} after"


def seams_text(found: Sequence[Seam]) -> str:
    """The step across each seam, a table for each layer."""
    return "\n".join(_seam_text(seam) for seam in found) or "no layer has an edge on the canvas: there are no seams"


def _seam_text(seam: Seam) -> str:
    by = f" by {seam.mask}" if seam.mask else ""
    title = f"layer {seam.layer}: {seam.image}{by}"
    if seam.before is None or seam.after is None or seam.images is None:
        where = f"{seam.blocks:,} of {seam.of_blocks:,} blocks" if seam.blocks < seam.of_blocks else "the canvas"
        return f"{title}\n  no edge found on {where}"
    how = f"a sample, {counted(seam.windows, 'window', 'windows')}" if seam.sampled else "all"
    rows: list[tuple[str, Step]] = [("hard edge", seam.before), (f"feather {seam.feather}", seam.after)]
    rows += [(f"feather {name}", step) for name, step in seam.widths]
    for match in seam.matches:
        if match.hard is not None and match.feathered is not None:
            rows += [(f"{match.by}, hard edge", match.hard), (f"{match.by}, {seam.feather}", match.feathered)]
    rows.append(("images alone", seam.images))
    lines = [f"  {name:<18}{four_digits(step.mean):>10}{four_digits(step.p99):>10}" for name, step in rows]
    head = f"  {'step across edge':<18}{'mean':>10}{'99 %':>10}"
    left_out = [f"  match {match.by} is left out: {match.reason}" for match in seam.matches if match.tone is None]
    return "\n".join([title, f"  {seam.pairs:,} pairs of pixels across the edge ({how})", head, *lines, *left_out])
