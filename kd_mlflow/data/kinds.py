"""What a file is, by its content first and its name second.

Every part that decides whether a file is a picture, a label beside one or an archive asks here. Formats are
told by their published signatures; nothing is opened and nothing is decoded.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

# The bytes at a file's start that tell its kind.
HEAD_BYTES = 4096

Group = Literal["image", "picture", "compressed", "archive", "weights", "mistaken", "other"]


class Kind(NamedTuple):
    """What a file is.

    Attributes
    ----------
    group:
        ``image`` can be read; ``picture`` is one in a format that is not read; ``compressed`` and ``archive`` hold
        other files; ``mistaken`` stands where another file should be (a failed download); ``other`` is no picture.
    name:
        What a sentence calls it, with its article.
    step:
        What a person does about a file of this kind among pictures, as an imperative; empty: nothing helps.
    """

    group: Group
    name: str
    step: str = ""


_TO_JPEG = "convert it to JPEG or PNG"
_JPEG, _PNG, _GIF = Kind("image", "a JPEG"), Kind("image", "a PNG"), Kind("image", "a GIF")
_WEBP, _BMP, _TIFF = Kind("image", "a WebP picture"), Kind("image", "a BMP picture"), Kind("image", "a TIFF picture")
_PPM = Kind("image", "a PPM picture")
_AVIF = Kind("image", "an AVIF picture", f"{_TO_JPEG}, or install a Pillow that reads AVIF")
_JPEG2000 = Kind("image", "a JPEG 2000 picture")
_HEIC = Kind("picture", "a HEIC picture", f"{_TO_JPEG}, for example with `heif-convert` or `magick`")
_RAW = Kind("picture", "a camera's raw file", "develop it to JPEG or TIFF")
_SVG = Kind("picture", "an SVG drawing", "draw it as PNG")
_PSD = Kind("picture", "a Photoshop document", "export it as PNG")
_VIDEO = Kind("other", "a video", "take single frames from it")
_AUDIO = Kind("other", "a sound file")
_POSTSCRIPT = Kind("other", "a PostScript document", "draw it as PNG")
_PDF = Kind("other", "a PDF document", "export its pictures")
_LFS = Kind("mistaken", "a Git LFS pointer", "run `git lfs pull` where it was cloned")
_ANNEX = Kind("mistaken", "a git-annex pointer", "run `git annex get` where it was cloned")
_DVC = Kind("mistaken", "a DVC pointer", "run `dvc pull` where it was cloned")
_HTML = Kind("mistaken", "an HTML page", "the download failed: fetch it again")
_EMPTY = Kind("mistaken", "an empty file", "fetch or copy it again")
ZEROS = Kind("mistaken", "a file of zeros", "a copy or download broke off: fetch it again")
_AGAIN = "fetch the picture again"
_XML, _JSON = Kind("other", "an XML file", _AGAIN), Kind("other", "a JSON file", _AGAIN)
TEXT = Kind("other", "a text file", _AGAIN)
_TABLE = Kind("other", "a table (CSV)")
_ZIP = Kind("archive", "a ZIP archive", "unpack it")
_WEIGHTS = Kind("weights", "a file of network weights")
_PICKLE = Kind("other", "a Python pickle")
_ARRAY, _PARQUET = Kind("other", "a NumPy array"), Kind("other", "a Parquet table", "write its images out as files")
_DOCUMENT = Kind("other", "an office document", "export its pictures")
TAR = Kind("archive", "a tar", "unpack it")

_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", _JPEG), (0, b"\x89PNG\r\n\x1a\n", _PNG), (0, b"GIF87a", _GIF), (0, b"GIF89a", _GIF),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", _JPEG2000), (0, b"\xff\x4f\xff\x51", _JPEG2000),
    (0, b"FUJIFILMCCD-RAW", _RAW), (0, b"IIRO", _RAW), (0, b"IIRS", _RAW), (0, b"MMOR", _RAW), (0, b"IIU\0", _RAW),
    (0, b"FOVb", _RAW), (0, b"\0MRM", _RAW), (6, b"HEAPCCDR", _RAW),
    (0, b"8BPS", _PSD), (0, b"\xff\x0a", Kind("picture", "a JPEG XL picture", _TO_JPEG)),
    (0, b"\0\0\0\x0cJXL ", Kind("picture", "a JPEG XL picture", _TO_JPEG)),
    (0, b"\0\0\x01\0", Kind("picture", "an icon (ICO)", _TO_JPEG)), (0, b"icns", Kind("picture", "an icon", _TO_JPEG)),
    (0, b"v/1\x01", Kind("picture", "an OpenEXR picture", _TO_JPEG)),
    (0, b"DDS |\0\0\0", Kind("picture", "a DDS texture", _TO_JPEG)),
    (0, b"gimp xcf", Kind("picture", "a GIMP file", _TO_JPEG)),
    (0, b"#?RADIANCE", Kind("picture", "a Radiance picture", _TO_JPEG)),
    (0, b"SIMPLE  =", Kind("picture", "a FITS file", _TO_JPEG)),
    (128, b"DICM", Kind("picture", "a DICOM file", _TO_JPEG)),
    (0, b"\x1f\x8b", Kind("compressed", "a gzip file", "unpack it")),
    (0, b"\xfd7zXZ\0", Kind("compressed", "an xz file", "unpack it")),
    (0, b"\x28\xb5\x2f\xfd", Kind("compressed", "a Zstandard file", "unpack it")),
    (0, b"\x04\x22\x4d\x18", Kind("compressed", "an LZ4 file", "unpack it")),
    (0, b"LZIP\x01", Kind("compressed", "an lzip file", "unpack it")),
    (0, b"\x1f\x9d", Kind("compressed", "a .Z file", "unpack it")),
    (0, b"]\0\0\x80\0", Kind("compressed", "an LZMA file", "unpack it")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("archive", "a 7z archive", "unpack it")),
    (0, b"Rar!\x1a\x07", Kind("archive", "a RAR archive", "unpack it")),
    (0, b"MSCF\0\0\0\0", Kind("archive", "a cabinet archive", "unpack it")),
    (0, b"PK\x05\x06", _ZIP), (0, b"PK\x07\x08", _ZIP),
    (257, b"ustar", TAR),
    (0, b"%PDF", _PDF), (0, b"%!PS", _POSTSCRIPT), (0, b"\xc5\xd0\xd3\xc6", _POSTSCRIPT),
    (0, b"\x1a\x45\xdf\xa3", _VIDEO), (0, b"\0\0\x01\xba", _VIDEO), (0, b"\0\0\x01\xb3", _VIDEO),
    (0, b"FLV\x01", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (0, b"ID3\x02", _AUDIO), (0, b"ID3\x03", _AUDIO), (0, b"ID3\x04", _AUDIO), (0, b"fLaC", _AUDIO),
    (0, b"OggS", _AUDIO),
    (0, b"PAR1", _PARQUET), (0, b"\x93NUMPY", _ARRAY), (0, b"\x89HDF\r\n", Kind("other", "an HDF5 file")),
    (0, b"SQLite format 3\0", Kind("other", "an SQLite database")), (0, b"ARROW1", Kind("other", "an Arrow table")),
    (0, b"MATLAB 5.0", Kind("other", "a MATLAB file")), (0, b"\xd0\xcf\x11\xe0", _DOCUMENT),
    (0, b"\x80\x02", _PICKLE), (0, b"\x80\x03", _PICKLE), (0, b"\x80\x04", _PICKLE), (0, b"\x80\x05", _PICKLE),
)  # fmt: skip
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_QUICKTIME = re.compile(rb"\0...(?:moov|mdat|wide|free|skip|pnot)", re.DOTALL)
_SAFETENSORS = re.compile(rb".{4}\0{4}\{\"", re.DOTALL)
_PATTERNS = {_BZIP2: Kind("compressed", "a bzip2 file", "unpack it"), _QUICKTIME: _VIDEO, _SAFETENSORS: _WEIGHTS}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RIFF = {b"WEBP": _WEBP, b"AVI ": _VIDEO, b"WAVE": _AUDIO}
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124))
_PPM_HEADER = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d")
_HTML_START = re.compile(
    rb"(?:<\?xml[^>]*>|<!--(?:(?!-->).)*-->|\s)*<(?:!doctype\s+html|html|head|body|title|meta|script|div|iframe)\b",
    re.DOTALL | re.IGNORECASE,
)
_LFS_START = re.compile(rb"version https?://(?:git-lfs\.github|hawser\.github|git-media)")
_ANNEX_START = re.compile(rb"/annex/objects/|(?:\.\./)*\.git/annex/objects/")
_DVC_START = re.compile(rb"(?:md5|etag|outs):")

_READ_ENDINGS = (
    "jpg jpeg jpe jfif jfi jif pjpeg pjp mpo png apng gif webp bmp dib tif tiff ppm pgm pbm pnm avif avifs jp2 j2k jpf "
    "jpx jpc j2c"
)
_UNREAD_ENDINGS = (
    "heic heif heics heifs hif svg svgz psd psb ico icns tga dds exr hdr jxl xcf kra jxr wdp pcx dcm cr2 cr3 crw nef "
    "nrw arw srf sr2 dng orf rw2 raf pef srw x3f 3fr iiq mrw rwl kdc dcr erf mef mos raw"
)
_OTHER_ENDINGS = {
    "json jsonl ndjson geojson ipynb": _JSON,
    "csv tsv": _TABLE,
    "xml xmp aae plist gpx kml rdf": _XML,
    "txt md rst log yaml yml toml ini cfg conf names list lst tex url webloc dvc md5 sha1 sha256": TEXT,
    "py sh js css c h cpp java m r bat ps1 lua": Kind("other", "program text"),
    "html htm mhtml": _HTML,
    "mov mp4 m4v avi mkv webm mpg mpeg mts m2ts 3gp wmv flv mp insv lrv": _VIDEO,
    "mp3 wav m4a aac flac ogg opus amr wma": _AUDIO,
    "zip 7z rar tar gz tgz bz2 xz zst lz4 cab": Kind("archive", "an archive", "unpack it"),
    "iso dmg img vhd": Kind("archive", "a disk image", "copy the files out of it"),
    "pt pth ckpt safetensors onnx pt2 bin": _WEIGHTS,
    "pkl pickle": _PICKLE,
    "npy npz": _ARRAY,
    "doc docx xls xlsx ppt pptx odt ods rtf": _DOCUMENT,
    "parquet": _PARQUET,
    "pdf": _PDF,
    "db sqlite sqlite3 mdb": Kind("other", "a database"),
    "h5 hdf5 mat tfrecord tfrecords arrow dat idx thm": Kind("other", "a data file"),
}
_READ, _UNREAD = frozenset(_READ_ENDINGS.split()), frozenset(_UNREAD_ENDINGS.split())
_NAMED = {ending: kind for endings, kind in _OTHER_ENDINGS.items() for ending in endings.split()}
_PLAIN_TEXT = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "authors", "citation",
                         "makefile", "dockerfile", "manifest", "version", "md5sums", "sha256sums"})  # fmt: skip


def kind_of(head: bytes) -> Kind | None:
    """What a file is by the bytes it starts with, HEAD_BYTES of them or more; None where they do not tell."""
    if not head:
        return _EMPTY
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    for pattern, kind in _PATTERNS.items():
        if pattern.match(head):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    if head[:4] in _TIFF_STARTS:
        return _RAW if _is_raw_tiff(head) else _TIFF
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _boxed_kind(head)
    if head.startswith(b"BM") and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS:
        return _BMP
    if _PPM_HEADER.match(head):
        return _PPM
    if not head[:HEAD_BYTES].strip(b"\0"):
        return ZEROS
    return _text_kind(head[:HEAD_BYTES])


def kind_named(name: str) -> Kind | None:
    """What a file is by its name alone, where the name says that it is no picture."""
    return TEXT if name.casefold() in _PLAIN_TEXT else _NAMED.get(_ending(name))


def named_image(path: str) -> bool:
    """Whether a file's name says that it is a picture that can be read."""
    return _ending(path) in _READ


def named_picture(path: str) -> bool:
    """Whether a file's name says that it is a picture, in whatever format."""
    return _ending(path) in _READ or _ending(path) in _UNREAD


def may_be_picture(path: str) -> bool:
    """Whether a file's name leaves it open that it is a picture: ``0001`` does, ``0001.json`` does not."""
    return named_picture(path) or kind_named(path.rpartition("/")[2]) is None


def is_raw(data: bytes) -> bool:
    """Whether bytes are a camera's raw file, many of which are TIFFs around a thumbnail."""
    return kind_of(data[:HEAD_BYTES] if data[:4] not in _TIFF_STARTS else data) is _RAW


def is_picture(path: str, head: bytes) -> bool:
    """Whether a file claims to be a picture, by its content or by its name."""
    kind = kind_of(head) if head else None
    return named_picture(path) or (kind is not None and kind.group in ("image", "picture"))


def unreadable(data: bytes, formats: Collection[str]) -> str:
    """Why bytes that no reader takes are not an image, with the step that helps, as a phrase.

    Parameters
    ----------
    formats:
        Pillow's names of the formats that are read here: AVIF is not among them everywhere.
    """
    kind, plain = kind_of(data), "not an image in a format that can be read"
    if kind is None or (kind.group == "image" and (kind is not _AVIF or "AVIF" in formats)):
        return plain
    return f"{plain}, but {kind.name}" + (f" ({kind.step})" if kind.step else "")


def ending_label(path: str) -> str:
    """What a file that is no picture is counted as."""
    return f".{_ending(path)}" if _ending(path) else "without an ending"


def tally(counts: Counter[str], most: int = 4) -> str:
    """The most frequent labels with their numbers, and how many more labels there are."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ranked) - most} more kinds" if len(ranked) > most else ""
    return ", ".join(f"{label!r} ({count})" for label, count in ranked[:most]) + more


def second_forms(paths: Iterable[str]) -> set[str]:
    """The pictures in a format that is not read beside which the same picture lies in one that is.

    A camera's raw file, or a phone's HEIC, beside its JPEG: ``IMG_1.NEF`` and ``img_1.jpg``.
    """
    paths = list(paths)
    unread = [path for path in paths if _ending(path) in _UNREAD]
    stems = {_stem(path) for path in paths if named_image(path)} if unread else set()
    return {path for path in unread if _stem(path) in stems}


def _stem(path: str) -> str:
    return path.rpartition(".")[0].casefold()


def _ending(path: str) -> str:
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    return ending.casefold().rstrip() if stem else ""


def _zip_kind(head: bytes) -> Kind:
    """A ZIP archive by what its first member is called."""
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first.endswith((b"/data.pkl", b"/.format_version")):
        return _WEIGHTS
    if first.endswith(b".npy"):
        return _ARRAY
    return _DOCUMENT if first.startswith((b"[Content_Types]", b"_rels/", b"docProps/", b"mimetype")) else _ZIP


def _boxed_kind(head: bytes) -> Kind:
    """A file of ISO base media boxes (ISO/IEC 14496-12) by its brands: pictures of phones, videos, sound."""
    end = min(max(int.from_bytes(head[:4], "big"), 16), HEAD_BYTES)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end, 4))]
    if brands[0] in (b"avif", b"avis") or (brands[0] in (b"mif1", b"msf1") and b"avif" in brands):
        return _AVIF
    if brands[0] == b"crx ":
        return _RAW
    return _HEIC if brands[0] in _HEIC_BRANDS else _AUDIO if brands[0].startswith(b"M4A") else _VIDEO


# Tags of TIFF 6.0 and of Adobe's DNG 1.4.
_SUBFILE, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 262, 271, 330, 50706
_SENSOR = (32803, 34892)  # a color filter array, and linear raw


def _is_raw_tiff(data: bytes) -> bool:
    """Whether a TIFF is a camera's raw file, whose first picture is no more than a thumbnail."""
    if data[8:10] == b"CR":
        return True
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        entries = [struct.unpack_from(f"{order}HHI", data, start + 2 + 12 * i) for i in range(min(count, 512))]
        values = {}
        for index, (tag, size, _) in enumerate(entries):
            width = "H" if size == 3 else "I"
            (values[tag],) = struct.unpack_from(f"{order}{width}", data, start + 10 + 12 * index)
    except struct.error:  # the directory lies behind what was given, or is damaged
        return False
    thumbnail = values.get(_SUBFILE) == 1 and _MAKE in values and _SUB_IFDS in values
    return _DNG_VERSION in values or thumbnail or values.get(_PHOTOMETRIC) in _SENSOR


def _text_kind(head: bytes) -> Kind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    starts = {_LFS_START: _LFS, _ANNEX_START: _ANNEX, _DVC_START: _DVC, _HTML_START: _HTML}
    for pattern, kind in starts.items():
        if pattern.match(text):
            return kind
    if text.startswith(b"<"):
        return _SVG if b"<svg" in text else _XML
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return TEXT
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    if b"\0" in text:
        return None
    return _JSON if text.startswith((b"{", b"[")) else TEXT
