"""The same blend by libvips: `python job_vips.py FOLDER OUT.tif jpeg|deflate`; sigma 16, pyramidal TIFF."""

import sys
from pathlib import Path

import pyvips

folder, out, compression = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
base, overlay, mask = (
    pyvips.Image.new_from_file(str(folder / f"{name}.tif"), access="sequential") for name in ("base", "overlay", "mask")
)
blended = mask.gaussblur(16).ifthenelse(overlay, base, blend=True)
options = {"Q": 85} if compression == "jpeg" else {"predictor": "horizontal"}
blended.tiffsave(
    out, tile=True, pyramid=True, bigtiff=True, tile_width=256, tile_height=256, compression=compression, **options
)
