#!/usr/bin/env bash
# Guess: every LERC tile of an RGBA TIFF holds four samples a pixel.
# Seen: GDAL (libtiff) leaves the alpha of a tile out where it is 255 throughout, and writes it as the blob's mask where it
# is 0 or 255 only: such tiles hold three samples, those with other alpha four, in one file. The colours under alpha 0 are
# lost, though the compression is lossless. tifffile refuses the file as corrupted, at its first tile of three samples.
# rasterio 1.4.4 (GDAL 3.10.3), tifffile 2026.3.3, imagecodecs 2026.3.6.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q rasterio==1.4.4 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
cat >"$folder/read.py" <<'PY'
import sys, warnings
import imagecodecs, numpy as np, rasterio, tifffile
warnings.simplefilter("ignore")
name = sys.argv[1] + "/a.tif"
rng = np.random.default_rng(0)
rgba = rng.integers(1, 255, (64, 192, 4), np.uint8)
rgba[:, :64, 3] = 255
rgba[:, 64:128, 3] = 255 * (np.arange(64) % 2)
how = dict(driver="GTiff", height=64, width=192, count=4, dtype="uint8", tiled=True, blockxsize=64, blockysize=64,
           interleave="pixel", photometric="RGB", ALPHA="YES", compress="LERC")
with rasterio.open(name, "w", **how) as file:
    file.write(np.moveaxis(rgba, 2, 0))
with rasterio.open(name) as file:
    gdal = np.moveaxis(file.read(), 0, 2)
shapes = []
with tifffile.TiffFile(name) as tiff:
    page = tiff.pages[0]
    for offset, count in zip(page.dataoffsets, page.databytecounts):
        tiff.filehandle.seek(offset)
        shapes.append(imagecodecs.lerc_decode(tiff.filehandle.read(count)).shape)
    try:
        page.asarray()
        said = "reads it"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:60]}"
clear = rgba[..., 3] == 0
print(f"tiles of alpha 255, 0 or 255, and any: {shapes}")
print(f"GDAL {rasterio.__gdal_version__}: alpha as written: {bool((gdal[..., 3] == rgba[..., 3]).all())}, "
      f"colours under alpha 0: {np.unique(gdal[clear][:, :3]).tolist()}; tifffile: {said}")
lost = not gdal[clear].any() and (gdal[~clear] == rgba[~clear]).all()
sys.exit(not (shapes == [(64, 64, 3), (64, 64, 3), (64, 64, 4)] and lost and "corrupted" in said))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
