"""Check wheels before anyone installs them.

    python verify.py [--platform TAG] WHEEL...

Runs abi3audit --strict, auditwheel show (Linux), check-wheel-contents and
twine check --strict, then looks inside: tags, one file a compiled module, relative
run paths, licences, dependencies, size. Ends non-zero at the first that fails.
`--platform manylinux_2_28_x86_64` asks for this very platform tag.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

MAX_BYTES = 3_000_000
BUNDLED = r"(\.libs|\.dylibs)/[^/]*\.(so|dylib|dll)"
LICENCES = {"libgomp": "libgomp.txt", "libomp": "libomp.txt"}


def require(condition, message):
    if not condition:
        raise SystemExit(f"verify: {message}")


def run(tool, *arguments):
    """Run a tool of this environment, show what it says, stop if it fails."""
    program = shutil.which(tool, path=sysconfig.get_path("scripts")) or tool
    print(f"+ {tool} {' '.join(map(str, arguments))}", flush=True)
    done = subprocess.run(
        [program, *map(str, arguments)], text=True, stdout=subprocess.PIPE
    )
    print(done.stdout.strip(), flush=True)
    require(done.returncode == 0, f"{tool} failed")
    return done.stdout


def check_tags(wheel, metadata, wanted):
    """cp311-abi3, or cp3XYt-cp3XYt for free-threaded Pythons, and the platform."""
    name, version, python, abi, platform = wheel.stem.split("-")
    require(name == "cnn_ext", f"the wheel is of {name}")
    require(metadata["Version"] == version, f"version {metadata['Version']} inside")
    free_threaded = re.fullmatch(r"cp3\d+t", abi) and python == abi[:-1]
    require(
        (python, abi) == ("cp311", "abi3") or free_threaded,
        f"tag {python}-{abi} is neither cp311-abi3 nor a free-threaded Python's",
    )
    require(not platform.startswith("linux_"), f"platform {platform}: not repaired")
    if wanted:
        require(platform == wanted, f"platform {platform}, not {wanted}")
    return platform


def check_modules(names):
    """One file for each compiled module, a stub for each; nothing that is stray."""
    modules = [n for n in names if re.fullmatch(r"cnn_ext/[^/]+\.(so|pyd)", n)]
    found = sorted(n.split(".")[0] for n in modules)
    require(len(found) == len(set(found)), f"two files of one module: {modules}")
    stubs = sorted(n.removesuffix(".pyi") for n in names if n.endswith(".pyi"))
    require(found, "no compiled module")
    require(found == stubs, f"compiled modules {found}, stubs {stubs}")
    require("cnn_ext/py.typed" in names, "no py.typed")
    stray = {n.split("/")[0] for n in names} - {"cnn_ext", "cnn_ext.libs"}
    stray = {n for n in stray if not n.endswith(".dist-info")}
    require(not stray, f"files outside of the package: {sorted(stray)}")
    sources = [n for n in names if n.endswith((".c", ".h", ".pyx", ".pxd"))]
    require(not sources, f"sources in the wheel: {sources}")
    return modules


def check_run_paths(archive, modules):
    """Compiled modules look for libraries beside themselves only."""
    from elftools.elf.elffile import ELFFile

    for name in modules:
        elf = ELFFile(io.BytesIO(archive.read(name)))
        paths, needed = [], []
        for tag in elf.get_section_by_name(".dynamic").iter_tags():
            if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                paths += (getattr(tag, "rpath", None) or tag.runpath).split(":")
            elif tag.entry.d_tag == "DT_NEEDED":
                needed.append(tag.needed)
        print(f"{name}: needs {', '.join(needed)}; run path {':'.join(paths) or '-'}")
        outside = [p for p in paths if not p.startswith("$ORIGIN")]
        require(not outside, f"{name} has the absolute run path {outside}")


def check_licences(names, metadata):
    wanted = {"LICENSE"}
    for name in names:
        if re.search(BUNDLED, name):
            library = re.split(r"[-.]", Path(name).name)[0]
            require(library in LICENCES, f"no licence is known for {name}")
            wanted.add(LICENCES[library])
    listed = set(metadata.get_all("License-File", []))
    shipped = {n.split("/licenses/")[1] for n in names if "-info/licenses/" in n} - {""}
    require(
        wanted == listed == shipped,
        f"licences wanted {wanted}, listed {listed}, shipped {shipped}",
    )
    print(f"licences: {metadata['License-Expression']} ({', '.join(sorted(shipped))})")


def check_dependencies(metadata):
    requires = metadata.get_all("Requires-Dist", [])
    hard = [r for r in requires if "extra ==" not in r]
    require(
        len(hard) == 1 and hard[0].startswith("numpy"),
        f"numpy is to be the only dependency, found {hard}",
    )


def require_platform(tag, shown):
    """auditwheel finds that the wheel runs where its tag says, or on older systems."""
    kind, *wanted = re.fullmatch(r"((?:many|musl)linux)_(\d+)_(\d+)_\w+", tag).groups()
    found = re.search(rf'platform tag:\s+"{kind}_(\d+)_(\d+)', shown)
    require(found, f"auditwheel does not confirm {tag}")
    require(
        [int(n) for n in found.groups()] <= [int(n) for n in wanted],
        f"auditwheel finds {kind}_{'_'.join(found.groups())}, newer than {tag}",
    )


def verify(wheel, platform_wanted):
    print(f"=== {wheel.name}: {wheel.stat().st_size:,} bytes", flush=True)
    require(wheel.stat().st_size <= MAX_BYTES, f"larger than {MAX_BYTES:,} bytes")
    with zipfile.ZipFile(wheel) as archive:
        require(archive.testzip() is None, "the archive is broken")
        names = archive.namelist()
        require(len(names) == len(set(names)), "a file is there twice")
        (path,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
        platform = check_tags(wheel, metadata, platform_wanted)
        modules = check_modules(names)
        if "linux" in platform:
            check_run_paths(archive, modules)
        check_licences(names, metadata)
        check_dependencies(metadata)
    if "-abi3-" in wheel.name:
        run("abi3audit", "--strict", "--report", wheel)
    if "linux" in platform and sys.platform == "linux":
        shown = run("auditwheel", "show", wheel)
        require_platform(platform.split(".")[0], shown)
    # W009, W010: cnn_ext.libs stands beside the package, without modules
    run("check-wheel-contents", "--ignore", "W009,W010", wheel)
    run("twine", "check", "--strict", wheel)
    print(f"verify: {wheel.name} is fine", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform")
    parser.add_argument("wheels", nargs="+", type=Path)
    options = parser.parse_args()
    for path in options.wheels:
        verify(path, options.platform)
