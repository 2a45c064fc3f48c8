#!/usr/bin/env bash
# A blend on a dask cluster of SLURM's: one job is the scheduler and the driver, an array of jobs are the workers.
# They find each other by a file, so that folder must be on a file system that all nodes share.
#
#   WORKERS=8 THREADS=4 workflows/slurm_dask.sh BASE OVERLAY --mask MASK --feather 8um -o /shared/out.ome.zarr
#
# Prints the driver's job number. Requeued or failed: submit the same line again with --resume.
# INTERFACE names the network that the nodes share (such as ib0); options for sbatch go into SBATCH_… variables.
set -euo pipefail
workers=${WORKERS:-4} threads=${THREADS:-2}
dask=${DASK:-dask} tiledblend=${TILEDBLEND:-tiledblend}
interface=${INTERFACE:+--interface $INTERFACE}
folder=${RENDEZVOUS:-$PWD}/tiledblend-dask-$(date +%Y%m%d-%H%M%S)-$$
mkdir -p "$folder"
file=$folder/scheduler.json

submit() { sbatch --parsable "$@"; }
line=$(printf '%q ' "$tiledblend" blend "$@" --scheduler-file "$file")
scheduler=$(printf '%q ' "$dask" scheduler --scheduler-file "$file" --port 0 --no-dashboard)$interface
worker=$(printf '%q ' "$dask" worker --scheduler-file "$file" --nthreads "$threads" --no-dashboard --death-timeout 120 \
    --local-directory "$folder")$interface

driver=$(submit --job-name=tiledblend --output="$folder/%x-%j.log" --wrap "rm -f $(printf %q "$file"); $scheduler & s=\$!; $line; code=\$?; kill \$s; wait \$s; exit \$code")
driver=${driver%%;*}
# The workers start with the driver, and end by themselves when its scheduler has gone.
submit --job-name=tiledblend-worker --output="$folder/%x-%A_%a.log" --dependency="after:$driver" --array="1-$workers" --cpus-per-task="$threads" \
    --wrap "for i in \$(seq 600); do [ -s $(printf %q "$file") ] && exec $worker; sleep 1; done; exit 1" >/dev/null
echo "$driver"
