"""What is installed, what this machine has, what the compiled module holds, and which backend runs each op and why.

`seed-fast info` and `python -m seed_fast.info` print it.
"""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import seed_fast
from seed_fast._machine import cpu_model

_PACKAGES = ("torch", "triton", "numpy", "pillow", "safetensors", "huggingface_hub", "webdataset")
_EXTRAS = ("transformers", "peft", "diffusers", "xformers")
_FAILURE = Path(__file__).with_name("_native_build_failure.txt")


def collect() -> dict[str, Any]:
    """Collect everything that `seed-fast info` shows, ready for JSON.

    Returns:
        {"versions": {package: version or None}, "devices": {"cpu": ..., "gpus": [...], "gpu_reason": str},
        "build": {"compiled": bool, "reason": str, ...}, "products": {"setting": str, "folder": str, "measured":
        {question: answer}, "choices": {kind of product: library}}, "ops": one row per op and backend, as
        `seed_fast.ops.backend_table()` gives them}.

    Examples:
        >>> from seed_fast import info
        >>> info.collect()["versions"]["seed_fast"] == info.seed_fast.__version__
        True
    """
    module, missing = _native()
    return {
        "versions": _versions(),
        "devices": _devices(module),
        "build": _build(module, missing),
        "products": _products(),
        "ops": importlib.import_module("seed_fast.ops").backend_table(),
    }


def render(info: dict[str, Any]) -> str:
    """Format what `collect()` returned as the text of `seed-fast info`.

    Returns:
        Sections of aligned lines, without a newline at the end. A text that several backends share, such as the error
        of a missing driver, is printed once, and their lines refer to it.
    """
    sections = {
        "versions": [(name, version or "not installed") for name, version in info["versions"].items()],
        "devices": _device_lines(info["devices"]),
        "compiled module": _build_lines(info["build"]),
        "matrix products on the CPU": _product_lines(info["products"]),
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<16} {value}" for name, value in rows), ""]
    shown = info["build"].get("cuda", {}).get("unusable_reason", "")
    return "\n".join([*lines, "ops", *_op_lines(info["ops"], shown)])


def build_summary() -> str:
    """Return one line on the compiled module: whether it is there, and whether it holds the CUDA kernels."""
    lines = dict(_build_lines(_build(*_native())))
    return "; ".join(f"{name}: {lines[name]}" for name in ("compiled", "CUDA embedded") if name in lines)


def _native() -> tuple[ModuleType | None, str]:
    """Return (the compiled module, ""), or (None, why it is not there)."""
    try:
        return importlib.import_module("seed_fast._C"), ""
    except ModuleNotFoundError:
        if _FAILURE.is_file():
            return None, f"it could not be built at installation: {_FAILURE.read_text().strip()}"
        return None, "this is a pure-Python installation"
    except ImportError as error:
        return None, f"it is there but does not load: {error}"


def _versions() -> dict[str, str | None]:
    """Return {package: version}, None for a package that is not installed."""
    versions: dict[str, str | None] = {"seed_fast": seed_fast.__version__, "python": platform.python_version()}
    for name in (*_PACKAGES, *_EXTRAS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _devices(module: ModuleType | None) -> dict[str, Any]:
    """Return the processor, the instruction sets that our kernels can use on it, and every CUDA device."""
    torch = importlib.import_module("torch")
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(
                {
                    "name": properties.name,
                    "architecture": f"sm_{properties.major}{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    reason = "" if gpus else f"torch {torch.__version__} sees no CUDA device"
    return {
        "cpu": {
            "model": cpu_model(),
            "architecture": platform.machine(),
            "features": module.cpu_features() if module else None,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "gpus": gpus,
        "gpu_reason": reason,
    }


def _products() -> dict[str, Any]:
    """Return which library multiplies matrices on this machine, from earlier measurements; nothing is measured now."""
    calibration = importlib.import_module("seed_fast.model.calibration")
    products = importlib.import_module("seed_fast.model.cpu_products")
    try:
        setting, measured = products.setting(), calibration.answers()
    except ValueError as error:  # SEED_FAST_PRODUCTS has an unknown value: show that instead of ending with it
        return {"setting": str(error), "folder": str(calibration.folder()), "measured": {}, "choices": {}}
    return {
        "setting": setting,
        "folder": str(calibration.folder()),
        "measured": measured,
        "choices": products.known_choices(measured),
    }


def _product_lines(products: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) pairs: the library per kind of product, with the rates behind the choice."""
    lines = [("fixed", products["setting"] or "no; SEED_FAST_PRODUCTS does it")]
    if not products["measured"]:
        return [*lines, ("measured", "not yet: the first tok.fast() on this machine does it, in a second or two")]
    rates = products["measured"].get("float32 products", {})
    for kind, chosen in products["choices"].items():
        size, rows = kind.split(", ")
        found = rates[size.partition(" ")[0]][rows.partition(" ")[0]]["gflops"]
        lines.append(("", f"{kind}: {chosen} (GFLOP/s: " + ", ".join(f"{k} {v:.0f}" for k, v in found.items()) + ")"))
    for question, found in products["measured"].items():
        if question != "float32 products":
            lines.append(("", f"{question}: {_flat(found)}"))
    return [*lines, ("kept in", products["folder"])]


def _flat(found: dict[str, Any]) -> str:
    parts = (f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in found.items())
    return ", ".join(parts)


def _build(module: ModuleType | None, missing: str) -> dict[str, Any]:
    """Return what the compiled module says of itself, and whether its CUDA kernels can run here."""
    if module is None:
        return {"compiled": False, "reason": missing}
    usable, cuda_reason = module.cuda_available()
    build = {"compiled": True, "reason": "", "file": module.__file__, **module.build_info()}
    build["cuda"].update(usable=usable, unusable_reason=cuda_reason)
    return build


def _device_lines(devices: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) pairs: the processor, its instruction sets, and every GPU or why there is none."""
    cpu = devices["cpu"]
    features = cpu["features"]
    sets = "instruction sets unknown without the compiled module" if features is None else ", ".join(features) or "none"
    lines = [
        ("CPU", f"{cpu['model']} ({cpu['architecture']}), {cpu['cores']} cores, {cpu['threads']} threads"),
        ("", f"kernels can use: {sets}"),
    ]
    for gpu in devices["gpus"]:
        lines.append(("GPU", f"{gpu['name']}, {gpu['architecture']}, {gpu['memory_gib']} GiB"))
    return lines if devices["gpus"] else [*lines, ("GPU", f"none: {devices['gpu_reason']}")]


def _build_lines(build: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) pairs: how the module was compiled, and what its CUDA half holds and can do."""
    if not build["compiled"]:
        return [("compiled", f"no: {build['reason']}")]
    lines = [("compiled", f"yes, by {build['compiler']} for {build['system']}, Python {build['python']}")]
    if build["version"] != seed_fast.__version__:
        lines.append(("stale", f"it is of version {build['version']}; install seed_fast {seed_fast.__version__} again"))
    cuda = build["cuda"]
    if not cuda["embedded"]:
        return [*lines, ("CUDA embedded", f"no: {cuda['reason']}")]
    code = cuda["device_code"]
    kernels = [kernel for source in code["sources"].values() for kernel in source["kernels"]]
    images = ", ".join([*code["architectures"], *(f"{ptx} (PTX)" for ptx in code["ptx"])])
    lines += [
        ("CUDA embedded", f"yes, {len(kernels)} kernels, {code['bytes'] / 1024:.0f} KiB, by {code['compiler']}"),
        ("images", images),
    ]
    return [*lines, ("CUDA usable", "yes" if cuda["usable"] else f"no: {cuda['unusable_reason']}")]


def _op_lines(rows: list[dict[str, Any]], shown: str) -> list[str]:
    """One line per op and backend, then what several lines would repeat, numbered: each text is printed once.

    Args:
        rows: as `seed_fast.ops.backend_table()` gives them.
        shown: the reason that the section on the compiled module has printed already, or "".
    """
    numbers: dict[str, int] = {}
    lines = []
    for row in rows:
        state = "yes"
        if not row["available"]:
            state = 'no: see "CUDA usable"' if row["reason"] == shown else f"no {_numbered(row['reason'], numbers)}"
        note = f"  {_numbered(row['note'], numbers)}" if row["note"] else ""
        lines.append(f"  {row['op']:<24} {row['backend']:<10} {state}{note}")
    return [*lines, *(f"  [{number}] {text}" for text, number in numbers.items())]


def _numbered(text: str, numbers: dict[str, int]) -> str:
    """The number of a text in brackets; a new text gets the next one."""
    return f"[{numbers.setdefault(text, len(numbers) + 1)}]"


if __name__ == "__main__":
    print(render(collect()))
