#!/usr/bin/env bash
# Guess: importing a library leaves the program's Ctrl-C alone, so an interrupted job ends with a non-zero exit code.
# Seen: `import dask_jobqueue` puts its own SIGINT handler in place (sys.exit() without a code). A program that is
# interrupted afterwards runs its `finally` blocks and then ends with exit code 0, as if it had done its work: a workflow
# engine or a shell's && goes on with a result that is not there.
# dask-jobqueue 0.9.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q dask-jobqueue==0.9.0 dask==2026.8.0 distributed==2026.8.0
cat >"$folder/job.py" <<'PY'
import os, signal, sys
if sys.argv[1] == "with":
    import dask_jobqueue
os.kill(os.getpid(), signal.SIGINT)   # Ctrl-C
import time
time.sleep(5)
print("not interrupted")
PY
plain=0; "$folder/env/bin/python" "$folder/job.py" without 2>/dev/null || plain=$?
with=0; "$folder/env/bin/python" "$folder/job.py" with 2>/dev/null || with=$?
echo "exit code of an interrupted program: $plain without the import, $with after import dask_jobqueue"
[ "$plain" -ne 0 ] && [ "$with" -eq 0 ]
