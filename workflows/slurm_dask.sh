#!/usr/bin/env bash
# A blend on a dask cluster of SLURM's: one job is the scheduler and the driver, an array of jobs are the workers.
# They find each other by a file, so that folder must be on a file system that all nodes share.
#
#   WORKERS=8 THREADS=4 workflows/slurm_dask.sh BASE OVERLAY --mask MASK --feather 8um -o /shared/out.ome.zarr
#
# Prints the driver's job number. A requeued driver goes on by itself and its workers find it again; after a failure submit
# the same line with --resume (the driver's log says why). INTERFACE names the network that the nodes share (such as ib0);
# options for sbatch go into SBATCH_… variables.
# The scheduler's port and the workers' are open to that network. Whoever connects must show the certificate that is made
# here for this run (openssl, TLS), in a folder that only you can read: others on the nodes can neither join nor watch.
set -euo pipefail
umask 077
workers=${WORKERS:-4} threads=${THREADS:-2}
dask=${DASK:-dask} tiledblend=${TILEDBLEND:-tiledblend}
interface=${INTERFACE:+--interface $INTERFACE}
command -v openssl >/dev/null || { echo "slurm_dask: openssl is missing; it makes the certificate of this run" >&2; exit 6; }
folder=${RENDEZVOUS:-$PWD}/tiledblend-dask-$(date +%Y%m%d-%H%M%S)-$$
mkdir -p "$(dirname "$folder")" && mkdir "$folder"
file=$folder/scheduler.json certificate=$folder/certificate.pem key=$folder/key.pem
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=tiledblend" -keyout "$key" -out "$certificate" 2>/dev/null

# By dask's configuration: `dask scheduler` refuses --interface beside --tls-….
tls="export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$(printf %q "$certificate")"
for role in SCHEDULER WORKER CLIENT; do
    tls+=" DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$(printf %q "$certificate") DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$(printf %q "$key")"
done

submit() { sbatch --parsable "$@"; }
quoted() { printf '%q ' "$@"; }
line=$(quoted "$tiledblend" blend "$@" --scheduler-file "$file")
scheduler=$(quoted "$dask" scheduler --scheduler-file "$file" --port 0 --no-dashboard)$interface
worker=$(quoted "$dask" worker --scheduler-file "$file" --nthreads "$threads" --no-dashboard \
    --death-timeout 30 --local-directory "$folder")$interface

driver=$(submit --job-name=tiledblend --output="$folder/%x-%j.log" --requeue --wrap "$tls
rm -f $(quoted "$file")
trap : TERM  # ends with the driver, which stores what it has begun, and not before it
$scheduler & s=\$!
trap 'kill \$s 2>/dev/null; rm -f $(quoted "$file")' EXIT
# Requeued: what was made before is kept. (--resume twice is --resume.)
[ \"\${SLURM_RESTART_COUNT:-0}\" = 0 ] || again=--resume
$line \$again")
driver=${driver%%;*}
# A worker looks for a scheduler for as long as the driver is in the queue: one that starts late, when all is over, ends at
# once, and one whose driver was requeued waits for it.
submit --job-name=tiledblend-worker --output="$folder/%x-%A_%a.log" --dependency="after:$driver" --array="1-$workers" --cpus-per-task="$threads" \
    --wrap "$tls
while case \$(squeue --noheader --jobs=$driver --format=%T 2>/dev/null) in PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED|SUSPENDED) true;; *) false;; esac; do
[ -s $(quoted "$file")] && $worker
sleep 5
done" >/dev/null
echo "$driver"
