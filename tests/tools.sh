#!/bin/sh
# The formats' own tools and independent readers that tests compare Lockstep's own with, and strace and faketime, which
# cut the power, fill disks and step clocks for them. Installs them where it may; elsewhere names the command.
# `tools.sh formats` adds what only `make test-formats` needs.
pairs="dpkg-deb:dpkg aapt:aapt aapt2:aapt apksigner:apksigner zipalign:zipalign strace:strace faketime:faketime
    rpmbuild:rpm gpg:gpg gpg-agent:gpg-agent openssl:openssl plistutil:libplist-utils wixl:wixl msiinfo:msitools makensis:nsis
    osslsigncode:osslsigncode x86_64-w64-mingw32-windres:binutils-mingw-w64-x86-64 nginx:nginx-light caddy:caddy
    clamd:clamav-daemon"
[ "$1" = formats ] && pairs="$pairs npm:npm java:default-jre-headless zip:zip unzip:unzip exiftool:libimage-exiftool-perl
    flatpak:flatpak bsdtar:libarchive-tools mksquashfs:squashfs-tools"
PATH="$PATH:/usr/sbin" # where nginx and clamd are
missing=""
for pair in $pairs; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -e /usr/share/android-framework-res/framework-res.apk ] || missing="$missing android-framework-res"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing for the tests:$missing"
    apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 && exit 0
fi
echo "Some tests will be skipped; they need: sudo apt-get install$missing"
