# Sourced by the scripts: makes `.venv` when there is none, or when what it needs has changed.
# Nothing is installed when nothing changed; that check takes a few milliseconds.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.venv"

# use_environment EXTRAS: makes sure that the extras of convert-pipeline are installed.
use_environment() {
    wanted="$1 $(cksum "$root/pyproject.toml" "$root/scripts/constraints.txt" | tr '\n' ' ')"
    stamp="$venv/.convert-$1"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        for name in python3.11 python3.12 python3.13 python3; do
            if command -v "$name" >/dev/null 2>&1; then
                python=$name
                break
            fi
        done
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: Python 3.11 or newer is needed" >&2
        echo "hint: PYTHON=/path/to/python3.11 $0" >&2
        exit 4
    fi
    echo "setting up $venv ($1); the first time this takes a few minutes" >&2
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$root[$1]" --config-settings editable_mode=compat --constraint "$root/scripts/constraints.txt" >"$venv/.install.log" 2>&1; then
        tail -n 20 "$venv/.install.log" >&2
        echo "error: the environment could not be set up" >&2
        exit 4
    fi
    printf '%s' "$wanted" >"$stamp"
}
