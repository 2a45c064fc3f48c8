#!/usr/bin/env bash
# Guess: `vips tiffsave` of a picture that Fiji saved keeps the pixel size: the file still says unit=micron, and has a resolution.
# Seen: Fiji writes 4 pixels per micron as resolution 4 without a unit, beside a comment with unit=micron. libvips takes 4
# per millimetre, writes 101.6 per inch, and keeps the comment. Readers of the tags now see 250 µm a pixel, readers of the
# comment's unit 0.0098 µm; it was 0.25 µm. And with a pyramid tifffile cannot list the file's images at all: it takes the
# smaller levels for planes of the comment's stack. pyvips-binary 8.18.0, tifffile 2026.3.3.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pyvips==3.1.1 pyvips-binary==8.18.0 tifffile==2026.3.3 numpy==2.4.6
cat >"$folder/read.py" <<'PY'
import sys
import numpy as np, pyvips, tifffile
fiji, vips = f"{sys.argv[1]}/fiji.tif", f"{sys.argv[1]}/vips.tif"
pixels = np.add.outer(np.arange(300), np.arange(400)).astype(np.uint8)
tifffile.imwrite(fiji, pixels, imagej=True, resolution=(4, 4), metadata={"unit": "micron"})
pyvips.Image.new_from_file(fiji).tiffsave(vips, tile=True, pyramid=True, compression="deflate")
def said(name):
    with tifffile.TiffFile(name) as tiff:
        tags = tiff.pages[0].tags
        over, under = tags["XResolution"].value
        return over / under, int(tags["ResolutionUnit"].value), "unit=micron" in tags["ImageDescription"].value
before, after = said(fiji), said(vips)
for name, (resolution, unit, micron) in (("as saved", before), ("after libvips", after)):
    print(f"{name}: resolution {resolution:.4g}, its unit {unit}, comment says micron: {micron}")
try:
    with tifffile.TiffFile(vips) as tiff:
        problem = "" if tiff.series else "none"
except RuntimeError as error:
    problem = str(error)
print("tifffile, images of the pyramid:", problem or "listed")
sys.exit(not (before == (4, 1, True) and abs(after[0] - 101.6) < 0.01 and after[1:] == (2, True) and problem))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
