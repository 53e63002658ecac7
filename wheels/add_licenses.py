"""Put the licences of bundled libraries into repaired wheels.

    python add_licenses.py WHEEL_OR_FOLDER...

auditwheel, delocate and delvewheel copy the OpenMP runtime into the wheel, not its
licence. This adds the text under `licenses/` beside this script for each library
found there, as PEP 639 has it: a file in dist-info/licenses, a License-File line and
an entry in License-Expression. A library without a known licence is an error. Needs
nothing but Python; a wheel that has it all is left as it is.
"""

import base64
import hashlib
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

TEXTS = Path(__file__).resolve().parent / "licenses"
# name of the library's file -> text, SPDX expression
KNOWN = {
    r"libgomp\b": ("libgomp.txt", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    r"libomp\b": ("libomp.txt", "Apache-2.0 WITH LLVM-exception"),
}


def bundled_libraries(names):
    """Names of the shared libraries that a repair tool added."""
    return [
        PurePosixPath(name).name
        for name in names
        if re.search(r"(\.libs|\.dylibs)/[^/]*\.(so|dylib|dll)", name)
    ]


def licences_of(library):
    for pattern, licence in KNOWN.items():
        if re.match(pattern, library):
            return licence
    raise SystemExit(f"add_licenses: no licence is known for the bundled {library}")


def with_licence(metadata, text, spdx):
    """METADATA with this text listed in its head."""
    head, separator, body = metadata.partition("\n\n")
    lines = head.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("License-Expression: ") and spdx not in line:
            lines[i] = f"{line} AND {spdx}"
    if f"License-File: {text}" not in lines:
        last = max(i for i, li in enumerate(lines) if li.startswith("License-File: "))
        lines.insert(last + 1, f"License-File: {text}")
    return "\n".join(lines) + separator + body


def record_line(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"{name},sha256={digest.rstrip(b'=').decode()},{len(data)}"


def add_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    contents = {info.filename: data for info, data in files.items()}
    (record,) = (name for name in contents if name.endswith(".dist-info/RECORD"))
    folder = record.removesuffix("/RECORD")
    licences = sorted({licences_of(library) for library in bundled_libraries(contents)})
    if not licences:
        print(f"{wheel.name}: no library is bundled")
        return

    changed = {}
    metadata = contents[f"{folder}/METADATA"].decode()
    for text, spdx in licences:
        changed[f"{folder}/licenses/{text}"] = (TEXTS / text).read_bytes()
        metadata = with_licence(metadata, text, spdx)
    changed[f"{folder}/METADATA"] = metadata.encode()
    lines = [
        line
        for line in contents[record].decode().splitlines()
        if line and line.split(",")[0] not in changed
    ]
    lines += [record_line(name, data) for name, data in changed.items()]
    changed[record] = ("\n".join(lines) + "\n").encode()

    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        new = [name for name in changed if name not in contents]
        for info, data in files.items():  # RECORD is the last
            if info.filename == record:
                for name in new:
                    archive.writestr(name, changed[name])
            archive.writestr(info, changed.get(info.filename, data))
    partial.replace(wheel)
    print(f"{wheel.name}: with {', '.join(text for text, _ in licences)}")


if __name__ == "__main__":
    for argument in map(Path, sys.argv[1:]):
        found = sorted(argument.glob("*.whl")) if argument.is_dir() else [argument]
        for path in found:
            add_licences(path)
