#!/usr/bin/env bash
# Guess: each page of a multi-page TIFF is decoded by its own tags.
# Seen: tifffile looks at pages 0, 1, 7 and the last; where these are alike it takes the whole file for one stack and
# decodes every page by page 0's tags. A fourth page of the same size that has a predictor comes out as its differences,
# without a warning; so do pages with other tiles of the same number, or min-is-white. With seven pages it groups pages by
# their tags instead: pages 0, 1, 2, 4, 5, 6 are one image then, and page 3 another. Pillow reads both files right.
# tifffile 2026.3.3, Pillow 13.0.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6 pillow==13.0.0
cat >"$folder/read.py" <<'PY'
import sys
import numpy as np, tifffile
from PIL import Image
y, x = np.mgrid[:256, :256]
pages = [((x + 3 * y + 11 * k) % 251).astype(np.uint8) for k in range(9)]
def read(number):
    """Of a file of so many pages, the fourth with a predictor: images, and whether page 3 is right, twice."""
    name = f"{sys.argv[1]}/{number}.tif"
    with tifffile.TiffWriter(name) as tiff:
        for k in range(number):
            tiff.write(pages[k], photometric="minisblack", tile=(64, 64), compression="zlib", predictor=k == 3, metadata=None)
    with tifffile.TiffFile(name) as tiff:
        shapes = [image.shape for image in tiff.series]
        stack = tiff.series[0].asarray()
    with Image.open(name) as picture:
        picture.seek(3)
        pillow = bool((np.asarray(picture) == pages[3]).all())
    return shapes, bool((stack[3] == pages[3]).all()), pillow
nine, seven = read(9), read(7)
print(f"tifffile {tifffile.__version__}: nine pages are {nine[0]}, page 3 right: {nine[1]} (Pillow: {nine[2]})")
print(f"seven pages are {seven[0]}, index 3 of the first is page 3: {seven[1]} (Pillow: {seven[2]})")
sys.exit(not (nine == ([(9, 256, 256)], False, True) and seven == ([(6, 256, 256), (256, 256)], False, True)))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
