"""Recognise by an input's first bytes its packing, and whether its text is UTF-8.

A file's name may be wrong (browsers and ``curl --compressed`` unpack a download, or keep it packed
under the name of its content); its magic number rarely is. Gzip is read; any other packing gives
one line with the command that makes a plain file.
"""

import json
import re

HEAD_BYTES = 4096
GZIP = "gzip"
OFFICE = ("a format of Excel or Word", "save it there as CSV UTF-8, with commas")
OFFICE_MEMBER = "[Content_Types].xml"
# (first bytes, format, what to do with the file {0})
_MAGIC = (
    (b"\x1f\x8b", GZIP, "unpack it first: gunzip < {0} > FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unpack it first: unzstd < {0} > FILE"),
    (b"\xfd7zXZ\0", "xz", "unpack it first: unxz < {0} > FILE"),
    (b"]\0\0", "lzma", "unpack it first: unlzma < {0} > FILE"),
    (b"\x04\x22\x4d\x18", "lz4", "unpack it first: unlz4 < {0} > FILE"),
    (b"\xff\x06\0\0sNaPpY", "snappy", "unpack it first"),
    (b"\x1f\x9d", "compress", "unpack it first: uncompress < {0} > FILE"),
    (b"LZIP\1", "lzip", "unpack it first: lunzip < {0} > FILE"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it first: 7z x {0}"),
    (b"PK\3\4", "zip", "unpack it first: unzip {0}"),
    (b"PAR1", "Parquet", "give --format parquet"),
)
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
_TAR_AT = 257
_LAST_PLANE = 3  # last plane of Unicode that has characters of languages
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32LE"),
    (b"\0\0\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
)
_MARK = b"\xef\xbb\xbf"
_GOES_ON = (b"{", b"[", b",")
_WRAPPED = re.compile(rb'\{[^\[\]{}]*"([A-Za-z_]\w*)"\s*:\s*\[\s*\{')


def packing(head: bytes) -> tuple[str, str] | None:
    """Return the packing of a file that begins with ``head`` and the remedy, or None."""
    if head.startswith(b"PK\3\4") and OFFICE_MEMBER.encode() in head:
        return OFFICE
    for magic, name, remedy in _MAGIC:
        if head.startswith(magic):
            return name, remedy
    if head[:3] == b"BZh" and head[3:4].isdigit() and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2", "unpack it first: bunzip2 < {0} > FILE"
    if head[_TAR_AT : _TAR_AT + 6] in (b"ustar\0", b"ustar "):
        return "tar", "unpack it first: tar -xf {0}; WebDataset tars: tnr shards index"
    return None


def wide_encoding(head: bytes) -> str | None:
    """Return the variant of UTF-16 or UTF-32 that starts with ``head``, or None.

    Without a byte order mark the NULs decide: every input has some ASCII characters (ids,
    separators, line ends), and these have NULs at the same places in every character.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head or not head.strip(b"\0"):
        return None
    groups = [head[at : at + 4] for at in range(0, len(head) - 3, 4)]
    if groups and all(group[3] == 0 and group[2] <= _LAST_PLANE for group in groups):
        return "UTF-32LE"
    if groups and all(group[0] == 0 and group[1] <= _LAST_PLANE for group in groups):
        return "UTF-32BE"
    # Few ideographs have a NUL byte, but the first characters of a file are ASCII.
    for place, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        nulls, others = head[place::2], head[1 - place :: 2]
        starts = nulls[:2] == b"\0\0" and others[:2].isascii() and 0 not in others[:2]
        dense = nulls.count(0) >= 0.3 * len(nulls) and nulls.count(0) > 4 * others.count(0)
        if starts or (dense and nulls.count(0) > 1):
            return name
    return None


def one_json_value(head: bytes) -> tuple[str, str] | None:
    """Describe a file without JSON lines, with jq's filter for it, or return None.

    Args:
        head: The file's first bytes.
    """
    text = head.removeprefix(_MARK).strip()
    first, _, rest = text.partition(b"\n")
    if rest and _is_json(first):  # one value per line, though of another form
        return None
    if text[:1] == b"[" and text != b"[]":
        return "a JSON array", ".[]"
    several = b"\n{" in text
    wrapped = None if several else _WRAPPED.match(text)
    if wrapped is not None:
        return "one JSON object with all rows in it", f".{wrapped[1].decode()}[]"
    if text[:1] == b"{" and rest and first.rstrip().endswith(_GOES_ON):
        return "JSON objects over several lines", "."
    return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
