"""JPEG Extended of 12 bits (DICOM's processes 2 and 4), decoded by GDCM.

pydicom refuses to give it to GDCM, and Pillow does not read it. GDCM's pixels are those of libjpeg-turbo, bit by bit
(`tests/csr/data/test_dicom.py`). The other decoders to be had are pylibjpeg-libjpeg, which is under the GPL, and
imagecodecs, 26 MB for this alone.
"""

from __future__ import annotations

from functools import cache

import gdcm
import numpy as np
import pydicom
from pydicom.pixels.decoders.base import Decoder, DecodeRunner
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm",)}  # what pydicom asks of a plugin's module
_PLUGIN = "gdcm, 12 bits"


def extended_pixels(dataset: pydicom.Dataset, frame: int) -> np.ndarray:
    """The stored values of a frame, numbered from 0."""
    return _decoder().as_array(dataset, index=frame, decoding_plugin=_PLUGIN)[0]


def is_available(uid: str) -> bool:
    """Whether this module decodes a transfer syntax."""
    return uid == JPEGExtended12Bit


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """A frame's compressed bytes → 16-bit little-endian values."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(runner.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    bits = runner.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, 0))
    pixels = image.GetBuffer()
    if pixels is None:
        raise ValueError("GDCM cannot decode this JPEG Extended image")
    return pixels.encode("utf-8", "surrogateescape")  # GDCM's binding gives bytes as text


@cache
def _decoder() -> Decoder:
    """One of our own: pydicom's is everybody's."""
    gdcm.Trace.WarningOff()  # it tries 8 bits first, and says so
    gdcm.Trace.ErrorOff()
    decoder = Decoder(JPEGExtended12Bit)
    decoder.add_plugin(_PLUGIN, (__name__, decode_frame.__name__))
    return decoder
