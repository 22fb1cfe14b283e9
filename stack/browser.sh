# Read by ./check after bootstrap.sh: `set_up_browser ROOT` gets what tests/apt-packages.txt names, or does nothing where
# a Chromium is installed or was got before. Nothing is installed in the system and nobody has to be root: the packages
# that are missing are unpacked in ROOT/.protostar/browser, where `chromium` runs the browser.

set_up_browser() {
    command -v chromium >/dev/null 2>&1 && return
    packages=$1/tests/apt-packages.txt
    browser=$1/.protostar/browser
    stamp=$browser/stamp # written last
    want="$1 $(cksum <"$packages")"
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
    command -v apt-get >/dev/null 2>&1 || give_up "the tests need a browser: install Chromium, so that \`chromium\` runs it"
    say "Getting Chromium for the tests; the first time this takes a minute ..."
    get_browser || give_up "Chromium could not be got; the lines above say why. Install it, or start again."
    printf '%s\n' "$want" >"$stamp"
}

get_browser() {
    rm -rf "$browser"
    mkdir -p "$browser/lists/partial" "$browser/archives/partial" "$browser/root"
    apt_get update || return
    # shellcheck disable=SC2046  (one word a package)
    apt_get install --yes --no-install-recommends --download-only $(cat "$packages") >&2 || return
    for package in "$browser"/archives/*.deb; do
        dpkg-deb --extract "$package" "$browser/root" || return
    done
    rm -rf "$browser/lists" "$browser/archives"
    printf '<fontconfig><dir>%s</dir></fontconfig>\n' "$browser/root/usr/share/fonts" >"$browser/root/fonts.conf"
    libraries=$(find "$browser/root/usr/lib" -name '*.so*' -exec dirname {} + | sort -u | tr '\n' ':')
    {
        echo '#!/bin/sh'
        printf "root='%s'\n" "$browser/root"
        printf "export LD_LIBRARY_PATH='%s'\n" "${libraries%:}"
        echo '[ -e /etc/fonts/fonts.conf ] || export FONTCONFIG_FILE="$root/fonts.conf"'
        echo 'exec "$root/usr/lib/chromium/chromium" "$@"'
    } >"$browser/chromium"
    chmod +x "$browser/chromium"
}

# apt-get with folders of our own: it reads the system's settings, takes none of its locks and changes nothing.
apt_get() {
    apt-get -qq -o Acquire::Retries=3 -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" \
        -o Dir::State::Lists="$browser/lists" -o Dir::Cache::Archives="$browser/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}
