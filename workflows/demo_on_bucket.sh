#!/usr/bin/env bash
# Shows that a bucket and a cluster work together: two synthetic slides and a mask are put into the bucket, blended from
# bucket to bucket, and the result is verified, a part of it by rendering it again from the inputs.
#
#   workflows/demo_on_bucket.sh s3://bucket/folder [FLAGS OF BLEND…]
#
# SIZE is the slides' side in pixels (8192). DASK_SCHEDULER_ADDRESS or --scheduler names a running cluster.
# Credentials as in s3_to_s3.sh. Run again: it continues, or finds everything done.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 s3://BUCKET/FOLDER [FLAGS OF BLEND…]" >&2; exit 2; }
address=${1%/} size=${SIZE:-8192}
shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python} tiledblend=${TILEDBLEND:-tiledblend}
slides=$(mktemp -d)
trap 'rm -r "$slides"' EXIT

echo "two slides of $size x $size px and a mask"
"$python" -c 'import sys; from tiledblend.demo.tissue import make_slides; make_slides(sys.argv[1], int(sys.argv[2]), seed=7)' "$slides" "$size"
"$python" "$here/put.py" --wait 120 "$slides"/*.tif "$address"
"$tiledblend" blend "$address/he.ome.tif" "$address/ihc.ome.tif" --mask "$address/mask.tif" --feather 16px --shard 2048 \
    -o "$address/blended.ome.zarr" --resume "$@"
"$tiledblend" verify "$address/blended.ome.zarr" --against-inputs 2
echo "done: $address/blended.ome.zarr"
