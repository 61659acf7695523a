#!/usr/bin/env bash
# Installs a real Triton server without containers, for tests and for a laptop: about 100 MB to fetch, 300 MB on disk.
# Production uses NVIDIA's image and the native onnxruntime backend instead.
#
#   infra/triton/install.sh [FOLDER]     FOLDER defaults to .triton/ of the project
#   PYTHON=python3.12 infra/triton/install.sh
#
# FOLDER/server     the server and its Python backend
# FOLDER/python     a virtual environment with numpy and onnxruntime, for the models; put its bin/ first on the server's
#                   PATH: the backend's embedded Python finds its packages by the first python3 there, and this
#                   release reads neither PYTHONPATH nor any other PYTHON… variable
# FOLDER/installed  is written last: without it nothing counts as installed, and running this again starts afresh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
folder=${1:-$project/.triton}
python=${PYTHON:-$project/.venv/bin/python}

fail() {
    echo "triton: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is missing; make the environment first or set PYTHON"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; install it there or set PYTHON"
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info[:2]))')
case $version in
    3.9 | 3.10 | 3.11 | 3.12) ;;
    *) fail "the Python backend needs numpy below 2, which exists for Python 3.9 to 3.12, not $version; set PYTHON" ;;
esac

stamp="python $version, pins $(cat "$here"/requirements-*.txt "$here/install.sh" | sha256sum | cut -d' ' -f1)"
if [[ -f $folder/installed && $(<"$folder/installed") == "$stamp" ]]; then
    echo "triton: already in $folder"
    exit 0
fi

# Only wheels: nothing is compiled, and no package runs code while it is installed.
install() {
    "$python" -m pip "${@:2}" --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --requirement "$here/$1" || fail "pip could not install $1; mend what it says above and run this again"
}

rm -rf "$folder/installed" "$folder/server" "$folder/python"
mkdir -p "$folder"
install requirements-server.txt install --no-compile --target "$folder/server"
"$python" -m venv --without-pip "$folder/python"
install requirements-python-backend.txt --python "$folder/python" install

# The backend starts the stub that lies beside it; each embeds one version of Python. A Python that brings its own
# libpython (uv, conda) keeps it out of the loader's sight, so it is linked to where the stub looks first.
triton=$folder/server/pytriton/tritonserver
stub=$triton/backends/python/triton_python_backend_stub
cp "$triton/python_backend_stubs/$version/triton_python_backend_stub" "$stub"
chmod +x "$stub"
library=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')/libpython$version.so.1.0
[[ ! -e $library ]] || ln -s "$library" "$folder/server/nvidia_pytriton.libs/"
for binary in "$triton/bin/tritonserver" "$stub"; do
    missing=$(ldd "$binary" | awk '/not found/ {print $1}' | paste -sd' ')
    [[ -z $missing ]] || fail "$(basename "$binary") needs $missing; install what has it (libpython$version?), run again"
done

echo "$stamp" >"$folder/installed"
echo "triton: installed in $folder ($(du -sh "$folder" | cut -f1))"
