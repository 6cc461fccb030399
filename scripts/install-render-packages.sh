#!/usr/bin/env bash
# Installs the Debian packages that pictures are drawn with: fonts, drawings, a word list. Training, evaluation and
# some tests need them; asking a model doesn't. The list is src/pumice/data/render/packages.txt.
#
#   scripts/install-render-packages.sh           install what is missing (as root)
#   scripts/install-render-packages.sh --check   say what is missing; exit code 1 if anything is
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v dpkg-query > /dev/null; then
  echo "Not a Debian system: install the fonts and drawings of src/pumice/data/render/packages.txt by hand." >&2
  exit 1
fi

missing=()
while read -r package; do
  state=$(dpkg-query -W -f '${Status}' "$package" 2> /dev/null || true)
  [ "$state" = "install ok installed" ] || missing+=("$package")
done < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' src/pumice/data/render/packages.txt)

if [ ${#missing[@]} = 0 ]; then
  echo "All system packages for rendering are installed."
  exit 0
fi
echo "${#missing[@]} system packages for rendering are missing: ${missing[*]}"
[ "${1:-}" != --check ] || exit 1
if [ "$(id -u)" != 0 ]; then
  echo "Run this script as root to install them." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
found=()
for package in "${missing[@]}"; do
  # Names differ a little between releases; a few fonts fewer do no harm.
  if apt-cache show "$package" > /dev/null 2>&1; then found+=("$package"); else echo "not in this release: $package"; fi
done
apt-get install -y -q --no-install-recommends "${found[@]}"
