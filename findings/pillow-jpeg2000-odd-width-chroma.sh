#!/usr/bin/env bash
# Guess: Pillow reads a JPEG 2000 picture with chroma stored at half width (4:2:2, 4:2:0) at any size.
# Seen: of an even width it does; of an odd one each row's chroma is taken from a place that moves a little further with
# every row, so that colours run askew over the picture: dozens of levels off, without a warning. Luminance is right, and
# imagecodecs reads the same bytes right. Pillow 13.0.0, imagecodecs 2026.3.6.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pillow==13.0.0 imagecodecs==2026.3.6 numpy==2.4.6
cat >"$folder/read.py" <<'PY'
import ctypes, glob, io, os, sys
import imagecodecs, numpy as np, PIL
from PIL import Image
# The OpenJPEG that Pillow brings, as encoder: Pillow itself writes no subsampled components.
opj = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(PIL.__file__), "..", "pillow.libs", "libopenjp2*.so*"))[0])
u32 = ctypes.c_uint32
class Parameters(ctypes.Structure):
    _fields_ = [(n, u32) for n in "dx dy w h x0 y0 prec bpp sgnd".split()]
class Component(ctypes.Structure):
    _fields_ = [(n, u32) for n in "dx dy w h x0 y0 prec bpp sgnd resno factor".split()] + [
        ("data", ctypes.POINTER(ctypes.c_int32)), ("alpha", ctypes.c_uint16)]
class Picture(ctypes.Structure):
    _fields_ = [(n, u32) for n in "x0 y0 x1 y1 number".split()] + [("space", ctypes.c_int),
        ("comps", ctypes.POINTER(Component)), ("icc", ctypes.c_void_p), ("icclen", u32)]
opj.opj_image_create.restype = ctypes.POINTER(Picture)
opj.opj_create_compress.restype = opj.opj_stream_create_default_file_stream.restype = ctypes.c_void_p
def encode(planes):
    """A codestream of full luminance and chrominance of half its width, lossless."""
    parameters = (Parameters * 3)()
    for p, plane, dx in zip(parameters, planes, (1, 2, 2)):
        p.dx, p.dy, p.h, p.w, p.prec, p.bpp = dx, 1, *plane.shape, 8, 8
    image = opj.opj_image_create(3, parameters, 0)
    image.contents.y1, image.contents.x1 = planes[0].shape
    for k, plane in enumerate(planes):
        flat = np.ascontiguousarray(plane, np.int32)
        ctypes.memmove(image.contents.comps[k].data, flat.ctypes.data, flat.nbytes)
    options = (ctypes.c_char * 65536)()
    opj.opj_set_default_encoder_parameters(options)
    codec = ctypes.c_void_p(opj.opj_create_compress(0))
    name = sys.argv[1] + "/a.j2k"
    stream = ctypes.c_void_p(opj.opj_stream_create_default_file_stream(name.encode(), 0))
    assert opj.opj_setup_encoder(codec, options, image) and opj.opj_start_compress(codec, image, stream)
    assert opj.opj_encode(codec, stream) and opj.opj_end_compress(codec, stream)
    opj.opj_stream_destroy(stream)
    return open(name, "rb").read()
def error(width):
    """Mean error of Pillow and of imagecodecs against the picture, for one of this width."""
    y, x = np.mgrid[:120, :width]
    luma = (60 + 100 * np.sin(x / 30) ** 2).astype(np.uint8)
    blue, red = (128 + 60 * np.sin(x / 40)).astype(np.uint8), (128 + 60 * np.cos(x / 25)).astype(np.uint8)
    data = encode([luma, blue[:, ::2], red[:, ::2]])
    cb, cr = (np.repeat(plane[:, ::2], 2, 1)[:, :width].astype(float) - 128 for plane in (blue, red))
    rgb = np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], 2).clip(0, 255)
    return [float(np.abs(read(data) - rgb).mean()) for read in
            (lambda d: np.asarray(Image.open(io.BytesIO(d))).astype(float), lambda d: imagecodecs.jpeg2k_decode(d).astype(float))]
even, odd = error(200), error(201)
print(f"Pillow {PIL.__version__}, width 200: mean error {even[0]:.1f}; width 201: {odd[0]:.1f}")
print(f"imagecodecs {imagecodecs.__version__}, width 200: {even[1]:.1f}; width 201: {odd[1]:.1f}")
sys.exit(not (even[0] < 1 and even[1] < 1 and odd[1] < 1 and odd[0] > 10))
PY
"$folder/env/bin/python" "$folder/read.py" "$folder"
