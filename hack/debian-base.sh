#!/usr/bin/env bash
# Makes a base image for the Dockerfile out of Debian packages, where no image registry can be
# reached: needs root, debootstrap and buildah.
#
#   hack/debian-base.sh [NAME]       default localhost/daybreak-base
#   BASE_IMAGE=localhost/daybreak-base make images
#
# In a container, without user namespaces, buildah needs BUILDAH_ISOLATION=chroot.
set -euo pipefail

name=${1:-localhost/daybreak-base}
for tool in debootstrap buildah; do
  command -v "$tool" >/dev/null || { echo "debian-base: $tool is missing; apt-get install $tool" >&2; exit 2; }
done
[ "$(id -u)" -eq 0 ] || { echo "debian-base: debootstrap needs root" >&2; exit 2; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# ca-certificates comes as this machine has it: behind a company's proxy, pip must trust the proxy.
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >&2
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

container=$(buildah from scratch)
buildah add --quiet "$container" "$root" /
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name"
