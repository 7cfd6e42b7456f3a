# Sourced by the other scripts. `prepare_venv EXTRA` makes the virtual environment and sets PYTHON. `need_program NAME
# PACKAGE` installs a missing program from a Debian package, where that is possible.

# Tests, checks and demos start hundreds of Python processes: each would compile the library anew.
unset PYTHONDONTWRITEBYTECODE

prepare_venv() {
    local extra=$1
    local venv=${ADS_VENV:-.venv}
    local base=${ADS_PYTHON:-python3}
    PYTHON="$venv/bin/python"
    if [ ! -x "$PYTHON" ]; then
        echo "==> making the virtual environment $venv ($("$base" --version))"
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is needed; set ADS_PYTHON to one" >&2
            return 1
        }
        "$base" -m venv "$venv"
    fi
    local stamp="$venv/.installed-$extra"
    local wanted
    wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "==> installing asgi-datasource[$extra] and what it needs"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".[$extra]"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

# `find_python 3.12` prints the path of an interpreter of that version: pyenv's newest one, or the one on the PATH.
find_python() {
    local version=$1 found
    for found in $(ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python 2>/dev/null | sort -rV) \
        "$(command -v "python$version" || true)"; do
        if [ -x "$found" ] && "$found" -c "import sys; sys.exit('{}.{}'.format(*sys.version_info) != '$version')" 2>/dev/null; then
            echo "$found"
            return 0
        fi
    done
    echo "there is no Python $version here: install it with pyenv, or let scripts/test-python $version do it" >&2
    return 1
}

need_program() {
    local name=$1 package=$2
    if command -v "$name" >/dev/null || [ -x "/usr/sbin/$name" ]; then
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "==> $name is not here: the tests that need it will fail; install the package $package" >&2
        return 0
    fi
    echo "==> installing $package"
    # The package list may be missing or outdated.
    apt-get install -y -q --no-install-recommends "$package" >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "$package" >/dev/null; } ||
        echo "==> $package could not be installed: the tests that need it will fail" >&2
}

# `need_node_package NAME VERSION` installs a Node package into .cache/npm, once.
need_node_package() {
    local name=$1 version=$2 folder=.cache/npm
    if ! command -v npm >/dev/null; then
        need_program npm npm
    fi
    if [ "$(cat "$folder/node_modules/$name/.wanted" 2>/dev/null)" != "$version" ]; then
        echo "==> installing $name $version"
        mkdir -p "$folder"
        if npm install --silent --no-audit --no-fund --prefix "$folder" "$name@$version" >/dev/null; then
            printf '%s\n' "$version" >"$folder/node_modules/$name/.wanted"
        else
            echo "==> $name could not be installed: the tests that need it will fail" >&2
        fi
    fi
}
