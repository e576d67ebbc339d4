#!/usr/bin/env bash
# Writes constraints/pypi.txt and constraints/jazzy.txt anew from requirements/*.txt, keeping what
# constraints/*.in holds still. For maintainers; needs uv (pip install uv). Then `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
# Only Linux and Python < 3.14 are meant, so markers that say so are noise, and a pin too many does no
# harm. torch's CPU build satisfies a plain pin.
tidy() {
  sed -E -e "s/ and sys_platform == 'linux'| and implementation_name != 'PyPy'//g" \
    -e "s/python_full_version < '3.14' and //g; s/ and python_full_version < '3.14'//g" \
    -e "s/ ; .*platform_machine.*//; s/ ; (python_full_version < '3.14'|sys_platform == 'linux')$//" \
    -e "s/(==[^ ;]*)\+cpu/\1/" "$1"
}
lock() { # output, extra uv arguments...
  local output=$1
  shift
  # uv reads robosuite's requirements even though it is installed without them: leave it out, then
  # put its pin in by hand.
  local held
  held=$(mktemp)
  grep -v '^robosuite' "${output%.txt}.in" >"$held"
  uv pip compile --quiet --no-annotate --no-header --index-strategy unsafe-best-match --upgrade \
    --constraints "$held" "$@" --output-file "$output.new"
  {
    echo "# Written by scripts/lock.sh from requirements/ and $(basename "${output%.txt}").in. Do not edit."
    { tidy "$output.new"; grep '^robosuite' "${output%.txt}.in"; } | sort
  } >"$output"
  rm -f "$held" "$output.new"
  echo "$output: $(grep -c == "$output") versions pinned"
}
lock constraints/pypi.txt --universal --python-version 3.10 requirements/{core,sim,dev,ros,formats,view}.txt
lock constraints/jazzy.txt --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
  requirements/{core,sim,dev,formats}.txt # not view: rerun-sdk has no wheel for numpy 1.26 there
