#!/usr/bin/env bash
# Guess: OpenSlide reads a plain brightfield CZI (24-bit colour, one z, one time) that Zeiss' own library has written.
# Seen: it refuses every one: libCZI (through pylibCZIrw) gives each block the dimensions Z and T, of size 1 at 0, and
# OpenSlide knows X, Y, S, C and M only: Unrecognized subblock dimension "Z". The same bytes with those two dimensions
# renamed, and with the (empty) list of attachments that libCZI leaves out, open and have the right pixels.
# openslide-bin 4.0.1.2, openslide-python 1.4.7, pylibCZIrw 6.1.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q openslide-bin==4.0.1.2 openslide-python==1.4.7 pylibCZIrw==6.1.0 numpy==2.4.6
cat >"$folder/read.py" <<'PY'
import struct, sys
import numpy as np, openslide
from pylibCZIrw import czi
y, x = np.mgrid[:300, :400]
colour = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
name = f"{sys.argv[1]}/plain.czi"
with czi.create_czi(name, compression_options="uncompressed:") as out:
    out.write(data=colour[..., ::-1].copy(), plane={"C": 0})
    out.write_metadata(document_name="plain", channel_names={0: "colour"}, scale_x=0.25e-6, scale_y=0.25e-6)
with czi.open_czi(name) as again:
    same = bool((again.read(plane={"C": 0})[..., ::-1] == colour).all())
print("pylibCZIrw reads its file back:", "the same pixels" if same else "other pixels")
try:
    openslide.OpenSlide(name)
    refused = ""
except openslide.OpenSlideError as error:
    refused = str(error)
print("OpenSlide:", refused or "opens it")
data = open(name, "rb").read()
for dimension in (b"Z\0\0\0", b"T\0\0\0"):
    data = data.replace(dimension + struct.pack("<ii", 0, 1), b"C\0\0\0" + struct.pack("<ii", 0, 1))
data = bytearray(data.ljust(-(-len(data) // 32) * 32, b"\0"))
struct.pack_into("<q", data, 104, len(data))  # where the list of attachments is
data += b"ZISRAWATTDIR\0\0\0\0" + struct.pack("<qqi", 256, 256, 0) + bytes(252)
open(f"{sys.argv[1]}/patched.czi", "wb").write(data)
with openslide.OpenSlide(f"{sys.argv[1]}/patched.czi") as slide:
    opened = bool((np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[:, :, :3] == colour).all())
print("OpenSlide, dimensions renamed:", "the same pixels" if opened else "other pixels")
sys.exit(not (same and 'dimension "Z"' in refused and opened))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
