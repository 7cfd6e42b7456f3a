# Sourced by the other scripts: `prepare_venv EXTRA` makes the virtual environment and sets PYTHON.

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
