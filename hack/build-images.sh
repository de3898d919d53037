#!/usr/bin/env bash
# Builds the images with docker or buildah, whichever is there.
#
#   hack/build-images.sh [operator] [trainer]      both where none is named
#
#   IMAGE_PREFIX   repository without the image's name (default ghcr.io/daybreak)
#   IMAGE_TAG      default: the version in pyproject.toml
#   BASE_IMAGE     replaces the Dockerfile's base
#   PIP_CONFIG_FILE  a pip.conf that names the package index; handed to the build as a secret, so
#                  it stands in no layer
#
# buildah reads its own settings too, such as BUILDAH_ISOLATION=chroot where it runs in a container.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'build-images: %s\n' "$*" >&2; exit 2; }

[ $# -gt 0 ] || set -- operator trainer
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
prefix=${IMAGE_PREFIX:-ghcr.io/daybreak}
tag=${IMAGE_TAG:-$version}

# docker's legacy builder knows no build secrets, and its command line may be there without a daemon.
if docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
  build=(docker buildx build --load)
elif command -v buildah >/dev/null; then build=(buildah build --layers)
else fail "no docker with buildx and a running daemon, and no buildah; install one of them"; fi
[ -z "${BASE_IMAGE:-}" ] || build+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
if [ -n "${PIP_CONFIG_FILE:-}" ]; then
  [ -r "$PIP_CONFIG_FILE" ] || fail "PIP_CONFIG_FILE=$PIP_CONFIG_FILE cannot be read"
  build+=(--secret "id=pip,src=$PIP_CONFIG_FILE")
fi

for target in "$@"; do
  case $target in
    operator | trainer) ;;
    *) fail "there is no image '$target'; the images are operator and trainer" ;;
  esac
  printf '==> building %s\n' "$prefix/$target:$tag"
  "${build[@]}" --target "$target" --tag "$prefix/$target:$tag" .
done
