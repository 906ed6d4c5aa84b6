"""Old and odd spellings of documents brought to one form, before anything is worked out from them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ._metadata import json_view

DTYPE_BY_JSON_TYPE = {"number": "<f8", "array": "<f8", "boolean": "|b1", "string": "<U0", "integer": "<i8"}

_HDF5_SPECS = [
    "HDF5",
    "AD_HDF5",
    "AD_HDF5_SINGLE",
    "AD_HDF5_SWMR",
    "AD_HDF5_SWMR_STREAM",
    "AD_HDF5_SWMR_SLICE",
    "AD_HDF5_GERM",
    "PIL100K_HDF5",
    "XSP",
    "XSP3",
    "XPS3",
    "XSP3_BULK",
    "XSP3_STEP",
    "PANDA",
    "ROI_HDF5_FLY",
    "ROI_HDF51_FLY",
    "SIS_HDF51_FLY_STREAM_V1",
    "MERLIN_FLY_STREAM_V2",
    "MERLIN_HDF5_BULK",
    "TPX_HDF5",
    "EIGER2_STREAM",
    "PIL100k_HDF5",
    "ZEBRA_HDF51_FLY_STREAM_V1",
]
MIMETYPE_BY_SPEC = {
    **dict.fromkeys(_HDF5_SPECS, "application/x-hdf5"),
    "AD_TIFF": "multipart/related;type=image/tiff",
    "NPY_SEQ": "multipart/related;type=application/x-npy",
    "PIZZABOX_ENC_FILE_TXT_PD": "text/csv",
}
UNKNOWN_SPEC = "application/octet-stream"
DATASET_BY_SPEC = {
    **dict.fromkeys(("AD_HDF5", "AD_HDF5_SINGLE", "AD_HDF5_SWMR", "HDF5"), "/entry/data/data"),
    **dict.fromkeys(("XSP", "XSP3", "TPX_HDF5"), "/entry/instrument/detector/data"),
}
"""Dataset of a resource that names none."""

LARGEST_INDEX = 2**53
WIDEST_RANGE = 2**40
"""Rows that one StreamDatum may announce; more is a mistake."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|file:")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def data_key_view(data_key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON view of a data key with ``dtype_numpy`` completed and a null ``shape`` made ``[]``."""
    view = json_view(data_key)
    descr, old = view.pop("dtype_descr", None), view.pop("dtype_str", None)
    json_type = view.get("dtype")
    fallback = DTYPE_BY_JSON_TYPE.get(json_type) if isinstance(json_type, str) else None
    found = descr or view.get("dtype_numpy", old) or fallback
    if found:
        view["dtype_numpy"] = found
    if "shape" in view and view["shape"] is None:
        view["shape"] = []
    if "external" in view and view["external"] is None:
        view["external"] = ""
    return view


def configuration_view(configuration: Any) -> Any:
    """Return the JSON view of a descriptor's configuration, its data keys normalized."""
    view = json_view(configuration)
    if isinstance(configuration, Mapping):
        for device, settings in configuration.items():
            if isinstance(settings, Mapping) and isinstance(settings.get("data_keys"), Mapping):
                keys = settings["data_keys"]
                view[str(device)]["data_keys"] = {
                    str(key): data_key_view(value) if isinstance(value, Mapping) else json_view(value)
                    for key, value in keys.items()
                }
    return view


class Announced(NamedTuple):
    """A StreamResource in its present form."""

    mimetype: str
    uri: str
    parameters: dict[str, Any]
    relative: str


def announced_resource(doc: Mapping[str, Any], *, legacy: bool) -> Announced:
    """Return a StreamResource or Resource in the form StreamResources have now.

    Parameters
    ----------
    doc
        With ``mimetype`` and ``uri``, or with ``spec``, ``root``, ``resource_path`` and ``resource_kwargs``.
    legacy : bool
        Whether it is a Resource, whose spec counts in any case of its letters.
    """
    relative = ""
    if isinstance(doc.get("mimetype"), str):
        mimetype, uri = doc["mimetype"], str(doc.get("uri", ""))
        parameters = json_view(doc.get("parameters") or {})
    else:
        spec = str(doc.get("spec", ""))
        spec = spec.upper() if legacy else spec
        mimetype = MIMETYPE_BY_SPEC.get(spec, UNKNOWN_SPEC)
        parameters = json_view(doc.get("resource_kwargs") or doc.get("parameters") or {})
        uri, relative = file_uri(
            str(doc.get("root") or ""),
            str(doc.get("resource_path") or ""),
            str(doc.get("path_semantics") or "posix"),
        )
        if isinstance(parameters, dict):
            parameters["spec"] = spec
            if spec in DATASET_BY_SPEC:
                parameters["dataset"] = parameters.get("dataset") or DATASET_BY_SPEC[spec]
    if not isinstance(parameters, dict):
        parameters = {}
    _rename_parameters(parameters, mimetype)
    return Announced(mimetype, uri, parameters, relative)


def _rename_parameters(parameters: dict[str, Any], mimetype: str) -> None:
    per_point = parameters.pop("frame_per_point", None)
    if per_point:
        parameters["multiplier"] = per_point
    per_event = parameters.get("frames_per_event")
    # A single frame per event adds no axis, so only a larger number says something about the shape.
    if isinstance(per_event, int) and per_event > 1:
        parameters.setdefault("multiplier", per_event)
    if mimetype == "application/x-hdf5":
        dataset = parameters.get("dataset", "")
        parameters["dataset"] = parameters.pop("path", dataset)


def file_uri(root: str, resource_path: str, semantics: str) -> tuple[str, str]:
    r"""Return the uri of a legacy resource, and its path if that is relative (else ``""``).

    Examples
    --------
    >>> file_uri("/r", "sub/", "posix")
    ('file://localhost/r/sub/', '')
    >>> file_uri("C:\\data", "x.h5", "windows")
    ('file://localhost/C:/data/x.h5', '')
    """
    if _SCHEME.match(resource_path) and not root:
        return resource_path, ""
    if semantics == "windows" or _DRIVE.match(root) or (not root and _DRIVE.match(resource_path)):
        root, resource_path = root.replace("\\", "/"), resource_path.replace("\\", "/")
    path = f"{root.rstrip('/')}/{resource_path.lstrip('/')}" if root else resource_path
    if _SCHEME.match(path):
        return path, ""
    if path.startswith("//"):
        return f"file:{path}" if semantics == "windows" else f"file://localhost/{path.lstrip('/')}", ""
    if path.startswith("/"):
        return f"file://localhost{path}", ""
    return f"file://localhost/{path}", "" if _DRIVE.match(path) else path


class Ranged(msgspec.Struct, frozen=True):
    """What a StreamDatum announces: `count` rows from `index` on for the events from `seq` on."""

    index: int
    seq: int
    count: int
    oddity: str


def announced_range(doc: Mapping[str, Any]) -> Ranged | None:
    """Return the range of a StreamDatum; None if it is empty or makes no sense."""
    indices = _bounds(doc.get("indices"))
    if indices is None or indices[0] < 0:
        return None
    start, stop = indices
    if not 0 < stop - start <= WIDEST_RANGE:
        return None
    seq_nums = _bounds(doc.get("seq_nums"))
    if seq_nums is None or seq_nums[0] == seq_nums[1] == 0:
        return Ranged(start, start + 1, stop - start, "derived-seq-nums")
    width = min(stop - start, seq_nums[1] - seq_nums[0])
    if width <= 0:
        return None
    oddity = "" if stop - start == seq_nums[1] - seq_nums[0] else "uneven-range"
    return Ranged(start, seq_nums[0], width, oddity)


def _bounds(value: Any) -> tuple[int, int] | None:
    try:
        start, stop = value["start"], value["stop"]
    except (TypeError, KeyError, IndexError):
        return None
    start, stop = whole_number(start), whole_number(stop)
    return None if start is None or stop is None else (start, stop)


def whole_number(value: Any) -> int | None:
    """Return an index or seq_num as an int; None if it is no whole number or absurdly large."""
    if type(value) is not int:
        try:
            number = value.__index__()
        except (AttributeError, TypeError):
            return None
        if isinstance(value, bool):
            return None
        value = number
    return value if -LARGEST_INDEX < value < LARGEST_INDEX else None
