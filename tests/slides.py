"""Small vendor slides, made as OpenSlide has their formats; each with the pixels that they show."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

TILE = 64


@dataclass
class MadeSlide:
    """path: what is opened. pixels: what level 0 shows, (y, x, 3), to within `off` grey levels of a JPEG."""

    path: Path
    pixels: np.ndarray
    pixel_size_um: tuple[float, float] | None
    magnification: float | None
    off: int = 20


def picture(height: int, width: int, seed: float = 0.0) -> np.ndarray:
    """Smooth RGB, no two places alike: what JPEG keeps to within a few levels."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [
        127 + 90 * np.sin(x / 37 + seed) * np.cos(y / 51),
        127 + 90 * np.cos(x / 61) * np.sin(y / 29 + seed),
        60 + 100 * x / width + 60 * y / height,
    ]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG without subsampling."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _tiles(pixels: np.ndarray, side: int = TILE) -> list[np.ndarray]:
    """Padded by repeating the edge."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    rows = range(0, padded.shape[0], side)
    return [padded[y : y + side, x : x + side] for y in rows for x in range(0, padded.shape[1], side)]


def _jpeg_page(tiff: tifffile.TiffWriter, shape: tuple[int, int], tiles: Sequence[bytes], **more: Any) -> None:
    tiff.write(
        iter(tiles), shape=(*shape, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="ycbcr", subsampling=(1, 1),
        compression="jpeg", metadata=None, **more,
    )  # fmt: skip


def _half(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    return pixels[:height:2, :width:2]


def make_bif(folder: Path) -> MadeSlide:
    """Ventana: 3 x 4 tiles, each 6 px over its left neighbour and 4 px over the one below; numbered as a snake."""
    rows, columns, over_x, over_y = 3, 4, 6, 4
    truth = picture(rows * TILE - (rows - 1) * over_y, columns * TILE - (columns - 1) * over_x)
    step_y, step_x = TILE - over_y, TILE - over_x
    places = [(row * step_y, column * step_x) for row in range(rows) for column in range(columns)]
    tiles = [np.ascontiguousarray(truth[y : y + TILE, x : x + TILE]) for y, x in places]

    def number(row: int, column: int) -> int:
        from_below = rows - 1 - row
        return from_below * columns + (column if from_below % 2 == 0 else columns - 1 - column) + 1

    def joint(way: str, one: int, two: int, x: int, y: int) -> str:
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{way}" Tile1="{one}" Tile2="{two}" '
            f'OverlapX="{x}" OverlapY="{y}"/>'
        )

    joints = [
        joint("RIGHT", number(r, c), number(r, c + 1), over_x, 0) for r in range(rows) for c in range(columns - 1)
    ]
    joints += [joint("UP", number(r + 1, c), number(r, c), 0, over_y) for r in range(rows - 1) for c in range(columns)]
    scan = (
        '<iScan ScanRes="0.25" Magnification="40" UnitNumber="1" BuildVersion="1" Z-layers="1" ScanWhitePoint="235"/>'
    )
    whole = (
        f'<EncodeInfo Ver="2"><SlideInfo/><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" Width="{TILE}" '
        f'Height="{TILE}" NumRows="{rows}" NumCols="{columns}" Pos-X="0" Pos-Y="0">{"".join(joints)}</ImageInfo>'
        '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    grid = np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], 1) for r in range(rows)])

    def packet(text: str) -> list[tuple[int, str, int, bytes, bool]]:
        data = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
        return [(700, "B", len(data), data, True)]

    path = folder / "small.bif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        label = packet(f"<Metadata>{scan}</Metadata>")
        tiff.write(picture(30, 20), photometric="rgb", description="Label Image", extratags=label, metadata=None)
        _jpeg_page(
            tiff, grid.shape[:2], [jpeg(tile) for tile in tiles],
            description="level=0 mag=40 quality=95", extratags=packet(whole),
        )  # fmt: skip
        half = _half(grid)
        _jpeg_page(tiff, half.shape[:2], [jpeg(tile) for tile in _tiles(half)], description="level=1 mag=20 quality=95")
    return MadeSlide(path, truth, (0.25, 0.25), 40.0)


def make_scn(folder: Path, shape: tuple[int, int] = (330, 270)) -> MadeSlide:
    """Leica: the macro picture of the whole glass first, then the scan, which begins at a tenth of it."""
    scan, macro = picture(*shape), picture(100, 75, 2)
    nm_y, nm_x, at = shape[0] * 500, shape[1] * 500, 1_000_000
    whole_y, whole_x = 40_000_000, 30_000_000
    images = [(macro, (whole_y, whole_x, 0), "0.6"), (scan, (nm_y, nm_x, at), "20")]
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:x">'
        f'<collection name="c" uuid="urn:uuid:y" sizeX="{whole_x}" sizeY="{whole_y}"><barcode>QQ==</barcode>'
    )
    levels: list[np.ndarray] = []
    for pixels, (size_y, size_x, offset), objective in images:
        own = [pixels, _half(pixels)]
        text += (
            '<image name="i"><device model="m" version="1"/>'
            f'<pixels sizeX="{pixels.shape[1]}" sizeY="{pixels.shape[0]}">'
            + "".join(
                f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{r}" ifd="{len(levels) + r}"/>'
                for r, level in enumerate(own)
            )
            + f'</pixels><view sizeX="{size_x}" sizeY="{size_y}" offsetX="{offset}" offsetY="{offset}"/><scanSettings>'
            f"<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )
        levels += own
    text += "</collection></scn>"
    path = folder / "two.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for index, level in enumerate(levels):
            resolution = (20000 / 2 ** (index % 2),) * 2 if index >= 2 else (250, 250)
            _jpeg_page(
                tiff, level.shape[:2], [jpeg(tile) for tile in _tiles(level)], resolution=resolution,
                resolutionunit="centimeter", description=text if index == 0 else None,
            )  # fmt: skip
    return MadeSlide(path, scan, (0.5, 0.5), 20.0)


def make_mrxs(folder: Path) -> MadeSlide:
    """MIRAX: 4 x 5 pictures of 64 px, of which two were not scanned; three zoom levels; a background of its own."""
    rows, columns, fill = 4, 5, (10, 200, 30)
    truth = picture(rows * TILE, columns * TILE)
    missing = {(1, 1), (3, 2)}
    shown = truth.copy()
    for row, column in missing:
        shown[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = fill
    data, uuid = bytearray(), "ABCDEF0123456789"
    pages: list[list[tuple[int, int, int, int]]] = []
    for zoom in range(3):
        level, span = truth[:: 2**zoom, :: 2**zoom], 2**zoom
        records = []
        for row in range(0, rows, span):
            for column in range(0, columns, span):
                inside = {(row + i, column + j) for i in range(span) for j in range(span)}
                if inside <= missing:
                    continue
                tile = np.full((TILE, TILE, 3), 255, np.uint8)
                part = level[row * TILE // span :, column * TILE // span :][:TILE, :TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                stored = jpeg(tile)
                records.append((row * columns + column, len(data), len(stored), 0))
                data += stored
        pages.append(records)
    home = folder / "small"
    home.mkdir()
    (home / "Data0000.dat").write_bytes(bytes(data))
    index = bytearray(b"01.02" + uuid.encode() + bytes(8))
    table = len(index)
    index += bytes(4 * len(pages))
    for zoom, records in enumerate(pages):
        struct.pack_into("<i", index, table + 4 * zoom, len(index))
        index += struct.pack("<iiii", 0, len(index) + 8, len(records), 0)
        for record in records:
            index += struct.pack("<iiii", *record)
    struct.pack_into("<i", index, 5 + len(uuid), table)
    (home / "Index.dat").write_bytes(bytes(index))
    blue_first = fill[2] << 16 | fill[1] << 8 | fill[0]
    text = (
        f"[GENERAL]\nSLIDE_ID={uuid}\nIMAGENUMBER_X={columns}\nIMAGENUMBER_Y={rows}\nOBJECTIVE_MAGNIFICATION=20\n"
        "CameraImageDivisionsPerSide=1\n[HIERARCHICAL]\nHIER_COUNT=1\nNONHIER_COUNT=0\nHIER_0_NAME=Slide zoom level\n"
        f"HIER_0_COUNT=3\nINDEXFILE=Index.dat\n{''.join(f'HIER_0_VAL_{i}_SECTION=L{i}' + chr(10) for i in range(3))}"
        "[DATAFILE]\nFILE_COUNT=1\nFILE_0=Data0000.dat\n"
    )
    for zoom in range(3):
        text += (
            f"[L{zoom}]\nOVERLAP_X=0\nOVERLAP_Y=0\nMICROMETER_PER_PIXEL_X={0.25 * 2**zoom}\n"
            f"MICROMETER_PER_PIXEL_Y={0.5 * 2**zoom}\nIMAGE_FORMAT=JPEG\nIMAGE_FILL_COLOR_BGR={blue_first}\n"
            f"DIGITIZER_WIDTH={TILE}\nDIGITIZER_HEIGHT={TILE}\nIMAGE_CONCAT_FACTOR={1 if zoom else 0}\n"
        )
    (home / "Slidedat.ini").write_text(text)
    path = folder / "small.mrxs"
    path.write_bytes(jpeg(picture(20, 20)))
    return MadeSlide(path, shown, (0.5, 0.25), 20.0)


def make_philips(folder: Path) -> MadeSlide:
    """Philips: level 1 is padded to whole tiles in the file, and its true size told by the XML's pixel spacings."""
    truth = picture(320, 256)
    half = _half(truth)
    padded = np.full((192, 192, 3), 255, np.uint8)
    padded[: half.shape[0], : half.shape[1]] = half[:192, :192]
    spacing = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">&quot;{0.0005 * f}&quot; &quot;{0.00025 * f}&quot;</Attribute>'
        "</DataObject>"
        for f in (1, 2)
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">&quot;0.0005&quot; &quot;0.00025&quot;</Attribute>'
        '<Attribute Name="DICOM_DERIVATION_DESCRIPTION">tiff-useBigTIFF=1-levels=40,10003-x</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{spacing}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    path = folder / "philips.tiff"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        _jpeg_page(tiff, (320, 256), [jpeg(t) for t in _tiles(truth)], description=text, software="Philips DP v1.0")
        _jpeg_page(tiff, (192, 192), [jpeg(t) for t in _tiles(padded)], subfiletype=1, software="Philips DP v1.0")
    return MadeSlide(path, truth, (0.5, 0.25), 40.0)


def make_trestle(folder: Path) -> MadeSlide:
    """Trestle: 3 x 3 tiles whose neighbours overlap by 8 px across and 4 px down."""
    over_x, over_y, side = 8, 4, 3
    truth = picture(side * TILE - 2 * over_y, side * TILE - 2 * over_x)
    places = [(row * (TILE - over_y), column * (TILE - over_x)) for row in range(side) for column in range(side)]
    tiles = [np.ascontiguousarray(truth[y : y + TILE, x : x + TILE]) for y, x in places]
    path = folder / "trestle.tif"
    text = f"Background Color=E6E6E6;White Balance=C0C0C0;Objective Power=10;OverlapsXY={over_x} {over_y}"
    with tifffile.TiffWriter(path) as tiff:
        _jpeg_page(
            tiff, (side * TILE, side * TILE), [jpeg(tile) for tile in tiles], description=text,
            software="MedScan 1.0", resolution=(0.5, 0.25), resolutionunit="centimeter",
        )  # fmt: skip
    return MadeSlide(path, truth, (0.25, 0.5), 10.0)  # its resolution is µm a pixel


def make_huron(folder: Path) -> MadeSlide:
    """Huron: known by its Make."""
    truth = picture(192, 128)
    path = folder / "huron.tif"
    make = b"Huron Technologies\0"
    with tifffile.TiffWriter(path) as tiff:
        _jpeg_page(
            tiff, truth.shape[:2], [jpeg(tile) for tile in _tiles(truth)], resolution=(20000, 20000),
            resolutionunit="centimeter", extratags=[(271, "s", len(make), make, True)],
            description="Objective Power = 20",
        )  # fmt: skip
    return MadeSlide(path, truth, (0.5, 0.5), None)


def make_argos(folder: Path) -> MadeSlide:
    """Argos: known by a tag of its own, with XML."""
    truth = picture(192, 128)
    text = b"<Argos.Scan.Metadata><MinZ>0</MinZ><MaxZ>0</MaxZ><ObjectiveMagnification>20</ObjectiveMagnification>"
    text += b"</Argos.Scan.Metadata>\0"
    path = folder / "argos.avs"
    with tifffile.TiffWriter(path) as tiff:
        _jpeg_page(
            tiff, truth.shape[:2], [jpeg(tile) for tile in _tiles(truth)], resolution=(20000, 10000),
            resolutionunit="centimeter", extratags=[(65000, "s", len(text), text, True)],
        )  # fmt: skip
    return MadeSlide(path, truth, (1.0, 0.5), 20.0)


def make_vms(folder: Path) -> MadeSlide:
    """Hamamatsu VMS: two JPEGs beside each other, cut at restart markers, and a small map of both."""
    truth = picture(128, 256)
    for name, pixels in (("a.jpg", truth[:, :128]), ("b.jpg", truth[:, 128:]), ("map.jpg", truth[::4, ::4])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            folder / name, quality=95, subsampling=0, restart_marker_blocks=8
        )
    path = folder / "slide.vms"
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=2\nNoJpegRows=1\nImageFile=a.jpg\n"
        "ImageFile(1,0)=b.jpg\nMapFile=map.jpg\nPhysicalWidth=128000\nPhysicalHeight=32000\nSourceLens=40\n"
    )
    return MadeSlide(path, truth, (0.25, 0.5), 40.0)


def make_czi(folder: Path) -> MadeSlide:
    """Zeiss: two tiles of uncompressed colour with a gap of 30 px between them, and each at half its size."""
    one, two, gap = picture(100, 80), picture(100, 90, 1), 30
    truth = np.full((120, 80 + gap + 90, 3), 255, np.uint8)
    truth[:100, :80], truth[20:, 80 + gap :] = one, two
    blocks = [(one, 0, 0, 1), (two, 20, 80 + gap, 1), (_half(one), 0, 0, 2), (_half(two), 20, 80 + gap, 2)]
    xml = (
        f"<ImageDocument><Metadata><Information><Image><SizeX>{truth.shape[1]}</SizeX><SizeY>{truth.shape[0]}</SizeY>"
        '<ObjectiveSettings><ObjectiveRef Id="Objective:1"/></ObjectiveSettings></Image><Instrument><Objectives>'
        '<Objective Id="Objective:1"><NominalMagnification>20</NominalMagnification></Objective></Objectives>'
        '</Instrument></Information><Scaling><Items><Distance Id="X"><Value>2.5E-07</Value></Distance>'
        '<Distance Id="Y"><Value>5E-07</Value></Distance></Items></Scaling></Metadata></ImageDocument>'
    ).encode()
    data, entries = bytearray(512), b""

    def segment(name: bytes, content: bytes) -> int:
        data.extend(bytes(-len(data) % 32))
        at = len(data)
        data.extend(name.ljust(16, b"\0") + struct.pack("<qq", len(content), len(content)) + content)
        return at

    for number, (pixels, y, x, factor) in enumerate(blocks):
        height, width = pixels.shape[:2]
        sides = (
            (b"X", x, width * factor, width),
            (b"Y", y, height * factor, height),
            (b"C", 0, 1, 1),
            (b"M", number, 1, 1),
        )
        place = b"".join(
            name.ljust(4, b"\0") + struct.pack("<iifi", at, size, at, own) for name, at, size, own in sides
        )
        at = -(-len(data) // 32) * 32
        entry = struct.pack("<2siqii6xi", b"DV", 3, at, 0, 0, len(sides)) + place
        stored = pixels[:, :, ::-1].tobytes()
        head = (struct.pack("<iiq", 0, 0, len(stored)) + entry).ljust(256, b"\0")
        assert segment(b"ZISRAWSUBBLOCK", head + stored) == at
        entries += entry
    index = segment(b"ZISRAWDIRECTORY", struct.pack("<i", len(blocks)) + bytes(124) + entries)
    meta = segment(b"ZISRAWMETADATA", struct.pack("<ii", len(xml), 0) + bytes(248) + xml)
    attached = segment(b"ZISRAWATTDIR", bytes(256))
    data[:32] = b"ZISRAWFILE".ljust(16, b"\0") + struct.pack("<qq", 512, 512)
    struct.pack_into("<iiii32xiqqiq", data, 32, 1, 0, 0, 0, 0, index, meta, 0, attached)
    path = folder / "slide.czi"
    path.write_bytes(bytes(data))
    return MadeSlide(path, truth, (0.5, 0.25), 20.0, off=0)


def make_dicom(folder: Path, *, icc: bytes | None = None) -> MadeSlide:
    """DICOM WSI: a folder of two instances, one a level; TILED_FULL frames of JPEG."""
    from pydicom.uid import generate_uid

    truth = picture(200, 150)
    home = folder / "dicom"
    home.mkdir()
    series = generate_uid()
    write_dicom_level(home / "level0.dcm", truth, 0.0005, series, icc)
    write_dicom_level(home / "level1.dcm", _half(truth), 0.001, series, icc)
    return MadeSlide(home, truth, (0.5, 0.5), None)


def write_dicom_level(path: Path, pixels: np.ndarray, spacing_mm: float, series: str, icc: bytes | None = None) -> None:
    """One instance of VL Whole Slide Microscopy Image Storage (DICOM PS3.3 A.32.8)."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "SM", series, generate_uid()
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.Rows = data.Columns = TILE
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    data.TotalPixelMatrixFocalPlanes, data.DimensionOrganizationType = 1, "TILED_FULL"
    measures, shared, optical = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [spacing_mm, spacing_mm]
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    optical.OpticalPathIdentifier = "1"
    if icc is not None:
        optical.ICCProfile = icc
    data.OpticalPathSequence = [optical]
    frames = [jpeg(tile) for tile in _tiles(pixels)]
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)


MAKERS: dict[str, Callable[[Path], MadeSlide]] = {
    "Ventana BIF": make_bif,
    "Leica SCN": make_scn,
    "MIRAX (MRXS)": make_mrxs,
    "Philips TIFF": make_philips,
    "Trestle (TIFF)": make_trestle,
    "Huron (TIFF)": make_huron,
    "DICOM WSI": make_dicom,
    "Argos (TIFF)": make_argos,
    "Hamamatsu VMS": make_vms,
    "Zeiss CZI": make_czi,
}
