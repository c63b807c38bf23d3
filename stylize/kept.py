"""What a result keeps of the photograph's metadata: date, author, rights, camera and caption.

It is read from EXIF, IPTC and XMP by lists of what is wanted, so that nothing else comes along: no
thumbnail, no serial number, no history of edits, and places only if they are asked for. What only
IPTC says goes into XMP, too, because PNG and WebP have no IPTC. Does not import torch.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

__all__ = ["OURS", "Kept"]

OURS = "stylize-batch"
"""How the text begins that a result carries as its description."""

_Base = ExifTags.Base
_TAGS = (
    *(_Base.Artist, _Base.Copyright, _Base.Make, _Base.Model, _Base.DateTime),
    _Base.ImageDescription,
)
_TAGS_INSIDE = (
    *(_Base.DateTimeOriginal, _Base.DateTimeDigitized, _Base.OffsetTime),
    *(_Base.OffsetTimeOriginal, _Base.OffsetTimeDigitized, _Base.SubsecTime),
    *(_Base.SubsecTimeOriginal, _Base.SubsecTimeDigitized, _Base.ExposureTime, _Base.FNumber),
    *(_Base.ISOSpeedRatings, _Base.FocalLength, _Base.LensMake, _Base.LensModel),
)
"""Tags of EXIF that are kept, in its first part and in the part of the camera."""

_NAMESPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "aux": "http://ns.adobe.com/exif/1.0/aux/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

_PROPERTIES = (
    *("dc:creator", "dc:rights", "dc:description", "dc:title", "dc:subject"),
    *("photoshop:DateCreated", "photoshop:Credit", "photoshop:Source", "photoshop:Headline"),
    *("xmp:CreateDate", "xmpRights:Marked", "xmpRights:Owner", "xmpRights:UsageTerms"),
    *("xmpRights:WebStatement", "tiff:Make", "tiff:Model", "tiff:Artist", "tiff:Copyright"),
    *("exif:DateTimeOriginal", "aux:Lens"),
)
_PLACES = (
    *("photoshop:City", "photoshop:State", "photoshop:Country", "Iptc4xmpCore:Location"),
    *("Iptc4xmpCore:CountryCode", "exif:GPSLatitude", "exif:GPSLongitude", "exif:GPSAltitude"),
    *("exif:GPSAltitudeRef", "exif:GPSTimeStamp", "exif:GPSVersionID", "exif:GPSMapDatum"),
)
"""Properties of XMP that are kept, and those that tell a place."""

_RECORDS: Mapping[int, str] = {
    5: "dc:title",
    25: "dc:subject",
    55: "photoshop:DateCreated",
    60: "",  # the time of day
    80: "dc:creator",
    105: "photoshop:Headline",
    110: "photoshop:Credit",
    115: "photoshop:Source",
    116: "dc:rights",
    120: "dc:description",
}
_PLACE_RECORDS: Mapping[int, str] = {
    90: "photoshop:City",
    92: "Iptc4xmpCore:Location",
    95: "photoshop:State",
    100: "Iptc4xmpCore:CountryCode",
    101: "photoshop:Country",
}
"""Records of IPTC's section 2 that are kept, with the property of XMP that means the same."""

_LISTS = {"dc:creator": "Seq", "dc:subject": "Bag"}
_IN_LANGUAGES = ("dc:rights", "dc:description", "dc:title")
"""Properties that hold a list, or texts in several languages."""

for _prefix, _uri in (*_NAMESPACES.items(), ("rdf", _RDF), ("x", "adobe:ns:meta/")):
    ET.register_namespace(_prefix, _uri)


@dataclass(frozen=True)
class Kept:
    """The metadata of a photograph that its result keeps."""

    tags: Mapping[int, Any] = field(default_factory=dict)  # of EXIF
    inside: Mapping[int, Any] = field(default_factory=dict)  # of its part of the camera
    gps: Mapping[int, Any] = field(default_factory=dict)
    iptc: Sequence[tuple[int, bytes]] = ()  # records of section 2, in UTF-8
    xmp: bytes = b""  # a packet

    @classmethod
    def of(cls, image: Image.Image, *, places: bool) -> Kept:
        """Read what is kept of a picture whose pixels have been decoded.

        Broken metadata counts as none.
        """
        tags, inside, gps = _read_exif(image, places)
        iptc = _read_iptc(image, places)
        return cls(tags, inside, gps, tuple(iptc), _read_xmp(image, iptc, places))

    def exif(self) -> Image.Exif:
        """Return it as EXIF. There is no orientation, since results are upright."""
        exif = Image.Exif()
        exif.update(self.tags)
        for ifd, tags in ((ExifTags.IFD.Exif, self.inside), (ExifTags.IFD.GPSInfo, self.gps)):
            if tags:
                exif.get_ifd(ifd).update(tags)
        return exif

    def iptc_block(self) -> bytes:
        """Return the records of IPTC as one block, b"" where there are none."""
        if not self.iptc:
            return b""
        records = [(1, 90, b"\x1b%G"), *((2, number, text) for number, text in self.iptc)]  # UTF-8
        return b"".join(
            struct.pack(">BBBH", 0x1C, section, number, len(text)) + text
            for section, number, text in records
        )

    def jpeg_segment(self) -> bytes:
        """Return the segment APP13 of a JPEG with the records of IPTC, b"" where there are none."""
        block = self.iptc_block()
        if not block:
            return b""
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(block)) + block
        content = b"Photoshop 3.0\0" + resource + b"\0" * (len(block) % 2)
        if len(content) > 65533:
            return b""
        return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def _read_exif(
    image: Image.Image, places: bool
) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    try:
        exif = image.getexif()
        inside = exif.get_ifd(ExifTags.IFD.Exif)
        gps = dict(exif.get_ifd(ExifTags.IFD.GPSInfo)) if places else {}
        tags = {tag: _raw(value) for tag, value in _some(exif, _TAGS).items()}
        if tags.get(_Base.ImageDescription, b"").startswith(OURS.encode()):  # a result of ours
            del tags[_Base.ImageDescription]
        return tags, _some(inside, _TAGS_INSIDE), gps
    except Exception:  # Pillow raises many kinds for a broken EXIF
        return {}, {}, {}


def _some(tags: Mapping[int, Any], wanted: Sequence[int]) -> dict[int, Any]:
    return {int(tag): tags[tag] for tag in wanted if tag in tags and tags[tag] not in ("", None)}


def _raw(text: object) -> bytes:
    """Return a text as its bytes in the file, most often UTF-8. Pillow reads it as Latin-1."""
    return str(text).encode("latin-1", "replace")


def _read_iptc(image: Image.Image, places: bool) -> list[tuple[int, bytes]]:
    try:
        if not isinstance(image, ImageFile.ImageFile):
            return []
        found = IptcImagePlugin.getiptcinfo(image) or {}
    except Exception:  # Pillow raises many kinds for a broken block
        return []
    wanted = {**_RECORDS, **(_PLACE_RECORDS if places else {})}
    records = []
    for (section, number), value in sorted(found.items()):
        if section == 2 and number in wanted:
            texts = value if isinstance(value, list) else [value]
            records += [(number, _utf8(bytes(text))) for text in texts if len(text) < 32768]
    return records


def _utf8(text: bytes) -> bytes:
    """Return a text in UTF-8. What is neither that nor says what it is, is Latin-1 most often."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()
    return text


# --- XMP ---


def _qualified(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{_NAMESPACES[prefix]}}}{local}"


def _read_xmp(image: Image.Image, iptc: Sequence[tuple[int, bytes]], places: bool) -> bytes:
    """Return a packet with the properties that are kept, b"" where there are none."""
    names = [*_PROPERTIES, *(_PLACES if places else ())]
    found = _properties(image, {_qualified(name): name for name in names})
    for number, name in {**_RECORDS, **_PLACE_RECORDS}.items():
        texts = [text.decode() for record, text in iptc if record == number]
        if name and texts and name not in found:
            found[name] = _element(name, texts)
    if not found:
        return b""
    root = ET.Element("{adobe:ns:meta/}xmpmeta")
    rdf = ET.SubElement(root, f"{{{_RDF}}}RDF")
    described = ET.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    described.extend(found[name] for name in names if name in found)
    packet = ET.tostring(root)
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        + packet
        + (b'<?xpacket end="r"?>')
    )


def _properties(image: Image.Image, wanted: Mapping[str, str]) -> dict[str, ET.Element]:
    """Return the wanted properties of a picture's XMP, by name."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = packet.encode() if isinstance(packet, str) else bytes(packet)
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # which XMP has no use for
        return {}
    try:
        root = ET.fromstring(packet.strip(b"\0 \n\r\t"))
    except ET.ParseError:
        return {}
    found: dict[str, ET.Element] = {}
    for described in root.iter(f"{{{_RDF}}}Description"):
        for name, text in described.items():  # a plain text may be an attribute
            if name in wanted:
                element = ET.Element(name)
                element.text = text
                found[wanted[name]] = element
        for element in described:
            if element.tag in wanted:
                element.tail = None
                found[wanted[element.tag]] = element
    return found


def _element(name: str, texts: Sequence[str]) -> ET.Element:
    """Return a property with these texts."""
    element = ET.Element(_qualified(name))
    if name not in _LISTS and name not in _IN_LANGUAGES:
        element.text = texts[0]
        return element
    group = ET.SubElement(element, f"{{{_RDF}}}{_LISTS.get(name, 'Alt')}")
    for text in texts if name in _LISTS else texts[:1]:
        item = ET.SubElement(group, f"{{{_RDF}}}li")
        item.text = text
        if name in _IN_LANGUAGES:
            item.set(_LANG, "x-default")
    return element
