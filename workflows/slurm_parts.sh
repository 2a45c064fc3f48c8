#!/usr/bin/env bash
# A blend as a SLURM job array without dask: every element makes its share of the tiles, then one short job makes the
# upper levels and commits. The output must be on a file system that all nodes share.
#
#   PARTS=8 workflows/slurm_parts.sh BASE OVERLAY --mask MASK --feather 8um -o /shared/out.ome.zarr
#
# Prints the numbers of the array and of the finishing job, one a line. Options for sbatch itself go into SBATCH_…
# variables (SBATCH_PARTITION, …). A failed element's log says how to go on; what is done is kept.
set -euo pipefail
parts=${PARTS:-4}
tiledblend=${TILEDBLEND:-tiledblend}

submit() { sbatch --parsable "$@"; }
line=$(printf '%q ' "$tiledblend" blend "$@")
again=$(printf '%q ' "$0" "$@")

array=$(submit --job-name=tiledblend --output="%x-%A_%a.log" --array="1-$parts" --requeue \
    --wrap "$line --threads-per-worker \${SLURM_CPUS_PER_TASK:-1} --part \$SLURM_ARRAY_TASK_ID/$parts && exit
code=\$?
printf '%s\n' \"element \$SLURM_ARRAY_TASK_ID of $parts ended with exit code \$code; when its cause is mended, go on with\" $(printf %q "  PARTS=$parts $again--resume") >&2
exit \$code")
array=${array%%;*}
finish=$(submit --job-name=tiledblend-finish --output="%x-%j.log" --dependency="afterok:$array" --kill-on-invalid-dep=yes --wrap "exec $line --finish")
printf '%s\n' "$array" "${finish%%;*}"
