#!/usr/bin/env bash
# Slides in a bucket, result in a bucket: nothing is copied to this machine.
#
#   export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…    # or the machine's own role
#   export AWS_ENDPOINT_URL=https://s3.example.org        # for a store that is not Amazon's
#   workflows/s3_to_s3.sh s3://slides/he.tif s3://slides/ihc.tif s3://slides/mask.tif s3://results/out.ome.zarr
#
# Needs `pip install 'tiledblend[cloud]'`. With --scheduler the workers need the same variables. Run again after an
# interruption: it continues.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 BASE OVERLAY MASK OUT [FLAGS OF BLEND…]" >&2; exit 2; }
base=$1 overlay=$2 mask=$3 out=$4
shift 4
tiledblend=${TILEDBLEND:-tiledblend}
"$tiledblend" blend "$base" "$overlay" --mask "$mask" -o "$out" --resume "$@"
"$tiledblend" verify "$out"
