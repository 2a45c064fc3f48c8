#!/usr/bin/env bash
# Guess: a pixel of a slide's coarser level is a stored pixel; which region it is read with changes nothing.
# Seen: OpenSlide takes a region's corner in pixels of level 0, divides it by the level's factor, and where the factor is
# no whole number (1000 px over 333, say) lays the tiles at parts of a pixel: the level's first region is as stored, every
# other one is interpolated, by up to half a pixel of level 0. Tile by tile the level differs from what one read gives.
# With a whole factor (1000 over 250) both are the same. openslide-bin 4.0.1.2, openslide-python 1.4.7.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q openslide-bin==4.0.1.2 openslide-python==1.4.7 numpy==2.4.6 tifffile==2026.3.3
cat >"$folder/read.py" <<'PY'
import sys
import numpy as np, openslide, tifffile
rng = np.random.default_rng(0)
fine = rng.integers(0, 256, (1000, 1000, 3), np.uint8)
def differ(side):
    """Greatest difference between what is stored of level 1 and what 50 px wide regions of it give."""
    level = rng.integers(0, 256, (side, side, 3), np.uint8)
    name = f"{sys.argv[1]}/{side}.tif"
    with tifffile.TiffWriter(name) as tiff:
        tiff.write(fine, photometric="rgb", tile=(64, 64), metadata=None)
        tiff.write(level, photometric="rgb", tile=(64, 64), metadata=None, subfiletype=1)
    with openslide.OpenSlide(name) as slide:
        factor = slide.level_downsamples[1]
        def at(x):
            region = np.asarray(slide.read_region((round(x * factor), 0), 1, (50, side)))[:, :, :3]
            return int(np.abs(region.astype(int) - level[:, x : x + 50]).max())
        return factor, at(0), max(at(x) for x in range(50, side - 50, 50))
whole, broken = differ(250), differ(333)
for factor, first, others in (whole, broken):
    print(f"factor {factor:.4f}: first region differs by {first} from what is stored, others by up to {others}")
sys.exit(not (whole[1] == whole[2] == broken[1] == 0 and broken[2] > 5))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
