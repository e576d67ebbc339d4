#!/usr/bin/env bash
# Makes .venv: Python, ROS 2 and the simulation from PyPI, with hapo_ros built into it. What `make
# setup` runs. Does only what has changed since the last time. PYTHON=/path/to/python chooses which.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
log=$venv/setup.log
stamps=$venv/setup
start=$SECONDS
# A sourced ROS or another environment must not leak in: the venv holds its own ROS.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH MAKEFLAGS MFLAGS
export PATH=$PATH:/usr/sbin:/sbin PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*"; }
fail() { # what happened; what follows; what to do
  printf '\n%s\n' "$*" >&2
  exit 1
}

# --- what there is to do: for each part, the hash of what it is made from ------------------------
hash_of() { # paths...
  find "$@" -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum |
    sha256sum | cut -c1-64
}
is_done() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }
finish() { printf '%s\n' "$2" >"$stamps/$1"; }
origin() { # a venv knows its folder and its Python: moved or orphaned, it is of no use
  [ -x "$venv/bin/python" ] && { echo "$root" && cat "$venv/pyvenv.cfg"; } | sha256sum | cut -c1-64
}

exec 9>"$root/.setup.lock"
if ! flock -n 9; then
  say "Another setup of this folder is running; waiting for it."
  flock 9
fi
packages=$(hash_of constraints/pypi.txt requirements)
interfaces=$packages-$(hash_of CMakeLists.txt package.xml msg srv action scripts/hapo scripts/nodes)
sources=$interfaces-$(hash_of hapo_ros config models launch)
again= # why an existing .venv has to be made anew
if [ -e "$venv" ]; then
  [ -d "$stamps" ] || fail "$venv exists, but was not made by this setup. It was left as it is.
Move it away, then run 'make setup' again."
  if ! is_done origin "$(origin)"; then
    again="it was not finished, made elsewhere, or has lost its Python"
  elif [ -e "$stamps/installing" ]; then
    again="installing packages into it was interrupted"
  elif [ -n "${PYTHON:-}" ] &&
    ! grep -q "^version = $("$PYTHON" -c 'import platform; print(platform.python_version())')" "$venv/pyvenv.cfg"; then
    again="it has another Python than PYTHON=$PYTHON"
  fi
fi
[ -z "$again" ] && is_done sources "$sources" && exit 0

# --- the steps -------------------------------------------------------------------------------------
child=
interrupted() {
  trap - INT TERM
  [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
  fail "Setup was interrupted. .venv is not ready. Run 'make setup' again: it goes on from here."
}
trap interrupted INT TERM

step() { # title, command...: runs it with its output in the log and the seconds on the screen
  local title=$1 from=$SECONDS status=0
  shift
  printf '\n== %s: %s\n' "$title" "$*" >>"$log"
  [ -t 1 ] || say "  $title ..."
  set -m
  "$@" >>"$log" 2>&1 & # it holds the lock too: should this script be killed, no second one starts
  child=$!
  set +m
  while kill -0 "$child" 2>/dev/null; do
    [ ! -t 1 ] || printf '\r\033[K  %s ... %d s' "$title" $((SECONDS - from))
    sleep 0.2
  done
  wait "$child" || status=$?
  child=
  if [ "$status" -ne 0 ]; then
    printf '\n\nThe last lines of %s:\n' "$log" >&2
    tail -n 25 "$log" | sed 's/^/    /' >&2
    fail "$title failed (exit status $status). .venv is not ready.
The lines above say why; when that is mended, run 'make setup' again."
  fi
  [ ! -t 1 ] || printf '\r\033[K'
  say "  $title: done in $((SECONDS - from)) s"
}

usable() { # a Python that this can be made with
  "$1" - >/dev/null 2>&1 <<'PYTHON'
import ensurepip, os, sys, sysconfig, venv
assert (3, 10) <= sys.version_info < (3, 14)
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
PYTHON
}
find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13 python3.10; do
    if usable "$name"; then
      python=$(command -v "$name")
      return
    fi
    [ -z "${PYTHON:-}" ] || return 1
  done
  return 1
}
has_library() { ldconfig -p | grep -F "$1" >/dev/null; }
missing_packages() { # Debian's names of what this machine lacks
  find_python || echo python3 python3-venv python3-dev
  command -v gcc >/dev/null || echo gcc
  command -v g++ >/dev/null || echo g++
  command -v make >/dev/null || echo make
  command -v cmake >/dev/null || echo cmake
  has_library libEGL.so.1 || echo libegl1
  has_library libEGL_mesa.so.0 || has_library libEGL_nvidia.so.0 || echo libegl-mesa0
  has_library libOpenGL.so.0 || has_library libGL.so.1 || echo libgl1
  compgen -G '/usr/lib*/*/dri/*_dri.so' >/dev/null || compgen -G '/usr/lib*/dri/*_dri.so' >/dev/null ||
    has_library libEGL_nvidia.so.0 || echo libgl1-mesa-dri
  has_library libhidapi-hidraw.so.0 || echo libhidapi-hidraw0
}

new=
[ -d "$venv" ] && [ -z "$again" ] || new=yes
if [ -n "$new" ]; then
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64") ;;
    *) fail "This is $(uname -sm). ROS 2's wheels on PyPI exist for Linux on x86_64 only, so this setup
cannot work here. Where ROS 2 Jazzy is installed, build with colcon (README.md); without ROS,
'pip install .' gives learning, bags and simulation." ;;
  esac
  [ -z "$again" ] || say "Making $venv anew: $again."
  cat <<TEXT
Setting up hapo_ros in $venv
  It will hold PyTorch, ROS 2 Jazzy (rclpy, Fast DDS), MuJoCo, robosuite and hapo_ros itself: about 200
  packages from PyPI, 3.5 GB on disk, and the downloads in pip's cache. With an NVIDIA device, or
  where pip reaches PyPI but not download.pytorch.org, it is PyTorch's CUDA build and 7 GB.
  It takes 2 to 4 minutes and the time of the download, once.
TEXT
  [ -z "${ROS_DISTRO:-}" ] || say "  (ROS 2 $ROS_DISTRO is sourced in this shell; it is left alone and not used.)"
fi
python=
if ! is_done interfaces "$interfaces"; then
  missing=$(missing_packages | xargs)
  if [ -n "$missing" ]; then
    apt="apt-get install -y --no-install-recommends $missing"
    [ -z "${PYTHON:-}" ] || usable "$PYTHON" ||
      fail "PYTHON=$PYTHON cannot be used: it has to be Python 3.10 to 3.13 with venv and its headers."
    if ! command -v apt-get >/dev/null; then
      fail "This machine lacks what Debian calls: $missing
and has no apt-get. Install these with its own package manager, then run 'make setup' again."
    elif [ "$(id -u)" -eq 0 ]; then
      sudo=
    elif sudo -n true 2>/dev/null; then
      sudo=sudo
    else
      fail "System packages are missing, and installing them needs an administrator. Run

    sudo apt-get update && sudo $apt

then 'make setup' again."
    fi
    mkdir -p "$stamps"
    step "System packages ($missing)" $sudo sh -c "apt-get update && DEBIAN_FRONTEND=noninteractive $apt"
    missing=$(missing_packages | xargs)
    [ -z "$missing" ] || fail "Still missing after apt-get: $missing
The usual reason is a Python outside 3.10 to 3.13 ($(python3 --version 2>&1)). Install one of these
with its venv and dev packages, then: PYTHON=python3.12 make setup"
  fi
  find_python
fi

pip_install() { "$venv/bin/python" -m pip install --constraint constraints/pypi.txt "$@"; }
cpu_index() { # URL, devices...: pip's option for PyTorch's CPU builds
  # Not where there is a device that can do more, nor where the URL does not answer.
  local url=$1 device
  shift
  for device in "$@"; do
    ! compgen -G "$device" >/dev/null || return 0
  done
  # pip itself would try for minutes, once for each package.
  timeout 10 "$venv/bin/python" -c 'import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$url" 2>/dev/null && echo "--extra-index-url=$url"
  return 0
}
finds_cpu_build() { # is that what pip would install? It looks at what is offered, and installs nothing
  timeout 60 "$venv/bin/python" -m pip install --constraint constraints/pypi.txt $torch_index --quiet \
    --dry-run --ignore-installed --no-deps --report - torch 2>/dev/null |
    grep '"version": "[^"]*+cpu"' >/dev/null
}
look_for_room() {
  local gigabytes=9 build="CUDA build"
  ! finds_cpu_build || gigabytes=5 build="CPU build"
  say "  PyTorch: the $build"
  [ "$(df -Pk . | awk 'NR == 2 {print $4}')" -gt $((gigabytes * 1000000)) ] ||
    fail "Less than $gigabytes GB are free for $venv, with PyTorch's $build in it. No package was installed.
Make room, then run 'make setup' again."
}
install_packages() {
  local status=0
  : >"$stamps/installing" # stays only if this is killed
  # robosuite goes alone: its requirement of mink holds numpy at 1.26, and nothing here uses mink.
  pip_install $torch_index -r requirements/core.txt -r requirements/sim.txt -r requirements/dev.txt \
    -r requirements/ros.txt -r requirements/formats.txt -r requirements/view.txt &&
    pip_install --no-deps robosuite || status=$?
  rm "$stamps/installing"
  return $status
}
build() {
  # The venv is the ament prefix: what is installed there is found there.
  export AMENT_PREFIX_PATH=$venv PATH=$venv/bin:$PATH
  cmake -S "$root" -B "$venv/build" -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF \
    -DCMAKE_INSTALL_PREFIX="$venv" -DCMAKE_PREFIX_PATH="$venv" -DPython3_EXECUTABLE="$venv/bin/python3" &&
    cmake --build "$venv/build" --parallel "$(nproc)"
}
lay() {
  # CMake installs, but never removes: what an earlier install laid and this one did not goes.
  local before=$stamps/installed now=$venv/build/install_manifest.txt
  AMENT_PREFIX_PATH=$venv PATH=$venv/bin:$PATH cmake --install "$venv/build" || return
  sort "$now" >"$before.new"
  [ ! -f "$before" ] || comm -23 "$before" "$before.new" | tr '\n' '\0' | xargs -0 rm -fv
  mv "$before.new" "$before"
}
check() {
  # From outside the checkout, where hapo_ros/ would stand before the installed package.
  cd / && "$venv/bin/python" -c "import rclpy, hapo_ros.msg, hapo_ros.srv, hapo_ros.action"
}

if [ -n "$new" ]; then
  rm -rf "$venv"
  mkdir -p "$stamps"
  step "Virtual environment with $("$python" --version)" "$python" -m venv "$venv"
  finish origin "$(origin)"
fi
if ! is_done packages "$packages"; then
  rm -f "$stamps/packages" "$stamps/interfaces" "$stamps/sources"
  torch_index=$(cpu_index https://download.pytorch.org/whl/cpu '/dev/nvidia[0-9]*' /dev/dxg)
  compgen -G "$venv/lib/python3*/site-packages/torch" >/dev/null || look_for_room
  step "Packages from PyPI" install_packages
  finish packages "$packages"
fi
if ! is_done interfaces "$interfaces"; then
  rm -f "$stamps/interfaces" "$stamps/sources"
  step "Building hapo_ros" build
  finish interfaces "$interfaces"
fi
rm -f "$stamps/sources"
step "Installing hapo_ros" lay
step "Checking the installation" check
finish sources "$sources"
say "Ready in $((SECONDS - start)) s."
