"""A process that has imported everything and forks a `tiledblend` command per request: real processes, one import.

It reads requests as JSON lines and answers each with one. A command is a session of its own, so that its processes can
be found and signalled together. The forking process has one thread, always: a lock that another one held would be held
for ever in the child. A command that gets SIGUSR2 writes its threads' stacks to its stderr.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAMS = {
    "tiledblend": "tiledblend.cli.main",
    "scheduler": "distributed.cli.dask_scheduler",
    "worker": "distributed.cli.dask_worker",
}


def import_everything() -> None:
    """What a command would import on its way, in its order: the log settings come before dask."""
    from tiledblend.look.lines import start_logging

    start_logging()
    package = Path(sys.modules["tiledblend"].__file__ or "").parent
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        if not name.endswith(("__main__", "__init__")):
            import_module(name)
    for name in ("distributed", "distributed.deploy.local", "zarr", "imagecodecs", "cv2", "importlib.readers"):
        import_module(name)
    # What only a run imports; decoders are left to it, since what cannot be imported then is a case of its own.
    for name in ("jsonschema", "tornado.platform.asyncio", "email.policy", "distributed.http.scheduler.info"):
        import_module(name)
    for name in PROGRAMS.values():
        import_module(name)


def bow_to_permissions() -> None:
    """Give up root's right to pass over the permissions of files (capabilities 1 and 2, by capset)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capget(header, data)
    data[0] &= ~0b110
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def become(request: dict[str, Any]) -> None:
    """The forked child: takes over what the request says and runs the command. Does not return."""
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
        os.dup2(os.open(request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        tempfile.tempdir = None
        import dask.config

        dask.config.refresh()
        if request["program"] != "tiledblend":  # dask's own words, not hidden as in a command of ours
            from distributed.config import initialize_logging

            initialize_logging(dask.config.config | {"logging": {"distributed": "info"}})
        for name, value in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if "TBF_ROOT" in request["env"]:
            ctypes.CDLL(None).fault_arm()
        if request["as_owner"]:
            bow_to_permissions()
        for name, value in request["constants"].items():
            module, _, constant = name.partition(":")
            setattr(import_module(module), constant, value)
        sys.argv = [request["program"], *request["argv"]]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            program(request["program"])()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        # As at the end of a program: what is registered runs, files are flushed.
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def program(name: str) -> Callable[[], Any]:
    """The function that a console script of this name calls."""
    main: Callable[[], Any] = import_module(PROGRAMS[name]).main
    return main


def answer(request: dict[str, Any]) -> Any:
    """One request: poll a child, run a helper program, or start a command."""
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    if "run" in request:
        done = subprocess.run(request["run"], capture_output=True, text=True, check=False)
        return [done.returncode, done.stderr]
    assert len(os.listdir("/proc/self/task")) == 1, "the forking process has threads"
    child = os.fork()
    if child == 0:
        become(request)
    return child


def main() -> None:
    import_everything()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child's too, until its command begins
    gc.freeze()  # a child's collections leave the shared pages alone
    replies = os.fdopen(os.dup(1), "w")
    print(json.dumps(os.getpid()), file=replies, flush=True)
    while line := sys.stdin.readline():
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
