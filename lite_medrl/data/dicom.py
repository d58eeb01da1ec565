"""One frame of a DICOM file as an RGB image. Only pixels leave: no tag, no private element, no text.

The window is the caller's, else the first of the header, else the frame's own darkest to brightest value.
Nothing is decoded before the header says a size under the caps and a transfer syntax of the list below.
Windows: PS3.3 C.11.2.1.2.1 (linear). This is no de-identifier: text burned into the pixels stays.
"""

from __future__ import annotations

import logging
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lite_medrl.data.images import MAX_PIXELS, spread
from lite_medrl.types import DataError, ImageRef

MAX_FILE_BYTES = 500_000_000
MAX_FRAMES_PIXELS = 1_000_000_000  # rows x columns x frames: 2 GB at 16 bits, of which one frame is decoded
SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL")
MAY_SHOW_NAMES = ("US", "SC", "XC", "OT")  # modalities whose pixels often carry burned-in text

DAMAGE = (
    OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError,
    NotImplementedError, struct.error,
)  # fmt: skip

log = logging.getLogger(__name__)
_warned: set[str] = set()


def picture(ref: ImageRef) -> Image.Image:
    """The frame that `ref.member` names (frame=N, from 1) in its window.

    Raises:
        DataError: pydicom is missing; no DICOM, no pixels, too large; a transfer syntax, colour model or
            frame that cannot be read.
    """
    try:
        return shown(ref)
    except DataError:
        raise
    except damage() as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"image {ref}: cannot be read as DICOM ({told}); export it again") from error


def damage() -> tuple[type[Exception], ...]:
    """What elements that hold what they must not make pydicom and us raise."""
    errors = sys.modules.get("pydicom.errors")
    return (*DAMAGE, errors.BytesLengthException) if errors else DAMAGE


def shown(ref: ImageRef) -> Image.Image:
    """As `picture`, but for damaged files, which raise one of `damage`."""
    frame, window = view_of(ref)
    data = read(Path(ref.path), ref)
    frames = int(data.get("NumberOfFrames") or 1)
    if not 1 <= frame <= frames:
        raise DataError(f'image {ref}: the file has frames 1 to {frames}; set "frame" to one of them')
    values = decoded(data, frame - 1, ref)
    warn_of_text(data)
    if values.ndim == 3:
        return Image.fromarray(values)
    if values.ndim != 2:
        raise DataError(f"image {ref}: a frame of shape {values.shape} is neither grey nor RGB; export it")
    grey = windowed(rescaled(values, data), window or header_window(data))
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = Image.fromarray(255 - np.asarray(grey))
    return grey.convert("RGB")


def view_of(ref: ImageRef) -> tuple[int, tuple[float, float] | None]:
    """Frame and window out of frame=N[&window=CENTRE,WIDTH]."""
    frame, _, window = (ref.member or "frame=1").partition("&window=")
    centre, _, width = window.partition(",")
    return int(frame.removeprefix("frame=")), (float(centre), float(width)) if window else None


def read(path: Path, ref: ImageRef) -> Any:
    """The data set, once its header is found to be within the limits."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
        from pydicom.filereader import read_file_meta_info
    except ImportError as error:
        raise DataError(
            f"image {ref}: reading DICOM needs pydicom; install it with: pip install 'lite-medrl[dicom]'"
        ) from error
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"image {ref}: over {MAX_FILE_BYTES // 10**6} MB; export the frame that is asked")
        check_syntax(read_file_meta_info(path), ref)  # alone and first: dcmread inflates a deflated data set
        check_header(pydicom.dcmread(path, stop_before_pixels=True), ref)
        data = pydicom.dcmread(path)
    except FileNotFoundError as error:
        raise DataError(f"image {ref}: no such file; check the path in the row") from error
    except InvalidDicomError as error:
        raise DataError(f"image {ref}: is not DICOM; give it the name of its own format") from error
    if "PixelData" not in data:
        raise DataError(
            f"image {ref}: the DICOM file has no pixels (a report or a directory?); name the image's own file"
        )
    return data


def check_syntax(meta: Any, ref: ImageRef) -> None:
    """DataError for a transfer syntax that is not on the list; only the file's meta group has been read."""
    syntax = str(meta.get("TransferSyntaxUID") or "")
    if syntax not in SYNTAXES:
        raise DataError(
            f"image {ref}: transfer syntax {syntax or 'unknown'} is not read (only uncompressed and RLE); "
            "convert the file to Explicit VR Little Endian"
        )


def check_header(data: Any, ref: ImageRef) -> None:
    """DataError for what will not be decoded; nothing but the header has been read."""
    if "Rows" not in data or "Columns" not in data:
        raise DataError(
            f"image {ref}: the DICOM file has no pixels (a report or a directory?); name the image's own file"
        )
    pixels, frames = int(data.Rows) * int(data.Columns), int(data.get("NumberOfFrames") or 1)
    if pixels > MAX_PIXELS or pixels * frames > MAX_FRAMES_PIXELS:
        raise DataError(
            f"image {ref}: {data.Columns} x {data.Rows} x {frames} frames is over {MAX_PIXELS // 10**6} "
            f"megapixels a frame or {MAX_FRAMES_PIXELS // 10**6} in all; export a smaller one"
        )
    kind = str(data.get("PhotometricInterpretation", "nothing"))
    if kind not in GREY + COLOUR:
        raise DataError(f"image {ref}: colours as {kind} are not read; export the frame as PNG")


def decoded(data: Any, index: int, ref: ImageRef) -> np.ndarray:
    """The stored values of one frame [H, W], or its colours uint8 [H, W, 3]."""
    from pydicom.pixels import pixel_array

    try:
        values = pixel_array(data, index=index)
    except Exception as error:  # decoders raise what they like on broken bytes
        raise DataError(f"image {ref}: its pixels cannot be decoded ({error}); export it again") from error
    if values.ndim == 3 and values.dtype != np.uint8:
        raise DataError(f"image {ref}: colours of {values.dtype} are not read; export the frame as PNG")
    return values


def rescaled(values: np.ndarray, data: Any) -> np.ndarray:
    """Stored values in the units of the header (Hounsfield units for CT)."""
    slope, shift = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    return values.astype(np.float32) * slope + shift


def header_window(data: Any) -> tuple[float, float] | None:
    """The first window of the header."""
    centre, width = (data.get(key) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    first = [
        float(v[0] if hasattr(v, "__getitem__") and not isinstance(v, str) else v) for v in (centre, width)
    ]
    return (first[0], first[1]) if first[1] >= 1 else None


def windowed(values: np.ndarray, window: tuple[float, float] | None) -> Image.Image:
    """Greyscale of 8 bits: the window's lower end is black, its upper end white."""
    if window is None:
        return spread(values)
    centre, width = window
    scaled = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    return Image.fromarray(np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8))


def warn_of_text(data: Any) -> None:
    """Says once a process that pixels may show a name; never which file or whose."""
    burned = str(data.get("BurnedInAnnotation", "")).upper() == "YES"
    modality = str(data.get("Modality", ""))
    key = "burned" if burned else modality
    if (burned or modality in MAY_SHOW_NAMES) and key not in _warned:
        _warned.add(key)
        why = "a header says that text is burned in" if burned else f"modality {modality} often shows text"
        log.warning("DICOM: %s; pixels are used as they are, look at them before you share anything", why)
