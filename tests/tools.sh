#!/bin/sh
# The independent readers that tests compare Lockstep's own with, and strace and faketime, which cut the power, fill disks
# and step clocks for them. Installs them where it may; elsewhere names the command.
missing=""
for pair in dpkg-deb:dpkg aapt:aapt aapt2:aapt apksigner:apksigner zipalign:zipalign strace:strace faketime:faketime; do
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
