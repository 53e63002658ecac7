#!/usr/bin/env bash
# examples/second_project, which depends on cnn_ext by name, in an empty environment:
# installed with the wheel in wheels/dist, type-checked against it, run.
#
#     wheels/second_project.sh        after wheels/linux_x86_64.sh
#
# Needs Python 3.11 with venv.
. "$(dirname "$0")/common.sh"
compgen -G "$dist/cnn_ext-*.whl" >/dev/null ||
    die "no wheel in $dist: run wheels/linux_x86_64.sh first"
cp -r "$top/examples/second_project" "$work/"
"$(find_python 3.11)" -m venv "$work/env"
"$work/env/bin/pip" install -q --find-links "$dist" --only-binary cnn_ext \
    "$work/second_project"
"$work/env/bin/pip" list --format=freeze
cd /
"$work/env/bin/python" -P -c 'import cnn_ext, sys
print(cnn_ext.__file__)
sys.exit(not cnn_ext.__file__.startswith(sys.prefix))'
"$work/env/bin/stripes"
say "types"
# py.typed: the user's type checker sees our annotations
"$work/env/bin/pip" install -q mypy
(cd "$work" && env/bin/mypy --strict --python-executable env/bin/python \
    second_project/stripes)
modules=$(cd "$work" && env/bin/python -P -c 'import cnn_ext, pathlib
folder = pathlib.Path(cnn_ext.__file__).parent
print(*(f"cnn_ext.{stub.stem}" for stub in sorted(folder.glob("*.pyi"))))')
# the stubs say what the compiled modules have
# shellcheck disable=SC2086
(cd "$work" && env/bin/python -P -m mypy.stubtest $modules)
say "done: examples/second_project with $(cd "$dist" && ls cnn_ext-*x86_64.whl)"
