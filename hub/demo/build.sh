#!/bin/sh
# Builds the demonstration installers from sources/ into installers/.
#
# Needs the Debian packages dpkg, aapt, zipalign, apksigner, android-framework-res and a Java keytool, and a Python with
# hatchling (PYTHON=... names it). Times are fixed, so the .deb and the wheel come out the same every time. The APKs are
# signed with a key that is made here and thrown away, so their signing block differs from build to build; both are
# signed with the same key, as two installers of one program have to be.
set -eu

cd "$(dirname "$0")"
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
export SOURCE_DATE_EPOCH=1767225600 TZ=UTC # 2026-01-01T00:00:00Z
version=1.0.0
framework=${FRAMEWORK:-/usr/share/android-framework-res/framework-res.apk}
python=${PYTHON:-python3}
rm -rf installers
mkdir installers

cp -r sources/deb "$work/deb"
find "$work/deb" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$work/deb" "installers/hello-lockstep_$version-1_all.deb"

keytool -genkeypair -keystore "$work/key.p12" -storetype PKCS12 -storepass throwaway -alias demo -keyalg EC \
    -groupname secp256r1 -validity 10000 -dname "CN=Lockstep demonstration" 2>/dev/null
aapt2 compile --dir sources/apk/res -o "$work/resources.zip"
for variant in "" -tv; do
    aapt2 link -I "$framework" --manifest "sources/apk/AndroidManifest$variant.xml" -o "$work/linked.apk" \
        "$work/resources.zip"
    zipalign -f 4 "$work/linked.apk" "$work/aligned.apk"
    apksigner sign --ks "$work/key.p12" --ks-pass pass:throwaway --min-sdk-version 24 --v4-signing-enabled false \
        --out "installers/hello-lockstep$variant-$version.apk" "$work/aligned.apk"
done

cp -r sources/wheel "$work/wheel"
(cd "$work/wheel" && "$python" -m hatchling build -t wheel -d "$here/installers")
ls -l installers
