# Read by ./demo and ./check: `set_up ROOT` makes ROOT/.venv as requirements.txt has it, or does nothing if it is.

set_up() {
    root=$1
    venv=$root/.venv
    stamp=$venv/protostar-stamp # written last; it names the place too, because a venv can't be moved
    want="$root $(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && "$venv/bin/python" -I -S -c '' 2>/dev/null; then
        return
    fi
    lock_set_up
    keep_or_remove_venv
    say "Setting up .venv; the first time this takes a minute ..."
    if find_uv; then
        install_with_uv || { say "uv failed (see above); trying pip ..." && install_with_pip; }
    else
        install_with_pip
    fi || give_up "the set-up failed; the lines above say why. The next start tries again."
    printf '%s\n' "$want" >"$stamp"
    unlock_set_up
    say "Set up."
}

say() { printf '%s\n' "$*" >&2; }

give_up() {
    say "protostar: $*"
    exit 1
}

lock_set_up() {
    lock=$root/.protostar/set-up.pid
    mkdir -p "$root/.protostar" 2>/dev/null && [ -w "$root/.protostar" ] ||
        give_up "can't write to $root/.protostar; use a clone of your own"
    if ! (set -C && echo $$ >"$lock") 2>/dev/null; then
        other=$(cat "$lock" 2>/dev/null || :)
        if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
            give_up "another set-up is running (process $other); try again when it is done"
        fi
        echo $$ >"$lock"
    fi
    trap 'rm -f "$lock"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

unlock_set_up() {
    rm -f "$lock"
    trap - EXIT INT TERM
}

# A finished venv of this place is updated, one that somebody else made is added to; what is left is removed.
keep_or_remove_venv() {
    if "$venv/bin/python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        case $(cat "$stamp" 2>/dev/null) in
        "" | "$root "*) return ;;
        esac
    fi
    rm -rf "$venv"
}

# What the tests need and the demo does not. Read after `set_up`.
set_up_for_tests() {
    stamp=$venv/protostar-tests-stamp
    want=$(cksum <"$root/tests/requirements.txt")
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
    say "Getting a Korean analyser for the tests; the first time this takes a minute ..."
    if find_uv; then
        uv_install --no-deps --require-hashes -r "$root/tests/requirements.txt"
    else
        pip_install --no-deps --require-hashes -r "$root/tests/requirements.txt"
    fi || give_up "the set-up failed; the lines above say why. The next start tries again."
    printf '%s\n' "$want" >"$stamp"
}

# The uv of this machine, or one of our own in .protostar/uv, which pip installs: it is several times as fast as pip.
find_uv() {
    uv=$(command -v uv) || uv=$root/.protostar/uv/bin/uv
    "$uv" --version >/dev/null 2>&1 || install_uv || return
    # uv does not read pip's configuration.
    index=${PIP_INDEX_URL:-$("${python:-python3}" -m pip config get global.index-url 2>/dev/null || :)}
    if [ -n "$index" ]; then
        export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    fi
}

install_uv() {
    rm -rf "$root/.protostar/uv"
    find_python
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --disable-pip-version-check --target "$root/.protostar/uv" \
            --only-binary :all: --require-hashes -r "$root/stack/uv.txt"
    else
        "$python" -I -m venv "$root/.protostar/uv" &&
            "$root/.protostar/uv/bin/python" -m pip install --quiet --disable-pip-version-check \
                --only-binary :all: --require-hashes -r "$root/stack/uv.txt"
    fi 2>/dev/null
}

begin_venv() { echo unfinished >"$stamp"; }

install_with_uv() {
    [ -d "$venv" ] || "$uv" venv --quiet --python "${python:->=3.11}" "$venv" || return
    begin_venv
    uv_install --require-hashes -r "$root/requirements.txt" &&
        uv_install --no-deps --no-build-isolation -e "$root"
}

uv_install() { "$uv" pip install --quiet --python "$venv/bin/python" "$@"; }

install_with_pip() {
    # A venv that uv made has no pip until ensurepip puts it there.
    if ! "$venv/bin/python" -I -m pip --version >/dev/null 2>&1 &&
        ! "$venv/bin/python" -I -m ensurepip >/dev/null 2>&1; then
        rm -rf "$venv"
        find_python
        "$python" -I -m venv "$venv" || return
    fi
    begin_venv
    pip_install --require-hashes -r "$root/requirements.txt" &&
        pip_install --no-deps --no-build-isolation -e "$root"
}

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$python" -c 'import ensurepip, venv' 2>/dev/null ||
                give_up "$python has no venv; install it (Debian, Ubuntu: apt-get install python3-venv) or uv"
            return
        fi
    done
    give_up "no Python 3.11 or later found; install uv (https://docs.astral.sh/uv), or Python with its venv module"
}
