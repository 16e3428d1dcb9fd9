#!/bin/sh
# Write the cards of a fleet: a file for each machine that cloud-init reads at its
# first start. They share a secret that is made here; nobody has to log in.
#
#   ./fill.sh --version v0.2.0 --gateway nuc=192.168.1.2 --node pi-1 --node pi-2
#
# What is written has secrets in it: it is for you alone, and for the cards.
set -eu

repo=https://github.com/seed-780dceda/thicket
version='' sums='' gateway='' nodes='' faasds='' key='' out=cards
faasd_version='' faasd_commit='' faasd_sha256=''

say() { printf '%s\n' "$*"; }
die() { printf 'fill.sh: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
	case $1 in
	-h | --help)
		sed -n '2,7s/^# \{0,1\}//p' "$0"
		cat <<-'END'

		  --version V            release of Thicket
		  --gateway NAME=ADDR    the gateway's machine and its address, which must stay the same
		  --node NAME            a machine that is to be a node of ours; may be repeated
		  --faasd NAME=ADDR      a machine with faasd, which the gateway uses; may be repeated
		  --faasd-version V --faasd-commit HASH --faasd-sha256 HASH
		                         which faasd: the README says how to find out
		  --ssh-key FILE         your public key, such as ~/.ssh/id_ed25519.pub, to log in with all the same
		  --sums HASH            checksum of the release's SHA256SUMS (default: of the one that is there now)
		  --out DIR              where to write (default: cards)
		END
		exit 0
		;;
	--version | --gateway | --node | --faasd | --faasd-version | --faasd-commit | --faasd-sha256 | --ssh-key | --sums | --out)
		[ $# -ge 2 ] || die "$1 needs a value; see --help"
		case $1 in
		--version) version=$2 ;;
		--gateway) gateway=$2 ;;
		--node) nodes="$nodes $2" ;;
		--faasd) faasds="$faasds $2" ;;
		--faasd-version) faasd_version=$2 ;;
		--faasd-commit) faasd_commit=$2 ;;
		--faasd-sha256) faasd_sha256=$2 ;;
		--ssh-key) key=$2 ;;
		--sums) sums=$2 ;;
		--out) out=$2 ;;
		esac
		shift 2
		;;
	*) die "there is no option $1; see --help" ;;
	esac
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# name and address check what goes into the files.
name() { case $1 in '' | -* | *- | *[!a-z0-9-]*) die "$1 is no name for a machine: use a-z, 0-9 and -" ;; esac }
address() { case $2 in '' | *[!A-Za-z0-9.-]*) die "$1: $2 is no address: write NAME=192.168.1.2" ;; esac }

case $version$sums$faasd_version$faasd_commit$faasd_sha256 in *[!A-Za-z0-9.+-]*) die 'versions and checksums have letters, digits, ".", "+" and "-"' ;; esac
[ -n "$version" ] || die '--version is missing: '"$repo/releases"
case $gateway in *=*) ;; *) die '--gateway is missing: write --gateway nuc=192.168.1.2' ;; esac
name "${gateway%%=*}"
address --gateway "${gateway#*=}"
for n in $nodes; do name "$n"; done
for f in $faasds; do
	name "${f%%=*}"
	case $f in *=*) address --faasd "${f#*=}" ;; *) die "--faasd $f: write NAME=192.168.1.3" ;; esac
done
twice=$(for n in "${gateway%%=*}" $nodes $faasds; do say "${n%%=*}"; done | sort | uniq -d)
[ -z "$twice" ] || die "two machines are called $twice"
if [ -n "$faasds" ] && { [ -z "$faasd_version" ] || [ -z "$faasd_commit" ] || [ -z "$faasd_sha256" ]; }; then
	die '--faasd needs --faasd-version, --faasd-commit and --faasd-sha256; see --help'
fi
[ -z "$key" ] || [ -f "$key" ] || die "--ssh-key $key: there is no such file"
case $key in '' | *.pub) ;; *) die "--ssh-key $key: name the public key, ending in .pub" ;; esac
[ ! -e "$out" ] || die "$out is there already: remove it, or name another with --out"

if [ -z "$sums" ]; then
	sums=$(curl -fsSL --proto '=https' "$repo/releases/download/$version/SHA256SUMS" | sha256sum)
	sums=${sums%% *}
	# That is the checksum of nothing.
	[ "$sums" != e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 ] || die "there is no release $version at $repo/releases"
fi

# random prints 64 hexadecimal digits that nobody can guess.
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
secret=$(random)
password=$(random)

providers=''
for f in $faasds; do
	providers="$providers${providers:+,}${f%%=*}=http://admin:$password@${f#*=}:8080"
done

umask 077
mkdir -p "$out"
# card NAME FILE WHAT writes a machine's file. Secrets are no arguments of a
# program: these are for all to see.
card() {
	sed -f /dev/stdin "$here/$2" >"$out/$1.yaml" <<-END
		/^# .* fill\.sh/,/ before\.\$/d
		s|FILL_NAME|$1|g
		s|FILL_GATEWAY|${gateway#*=}|g
		s|FILL_VERSION|$version|g
		s|FILL_SUMS|$sums|g
		s|FILL_SECRET|$secret|g
		s|FILL_PASSWORD|$password|g
		s|FILL_PROVIDERS|$providers|g
		s|FILL_FAASD_VERSION|$faasd_version|g
		s|FILL_FAASD_COMMIT|$faasd_commit|g
		s|FILL_FAASD_SHA256|$faasd_sha256|g
		/THICKET_PROVIDERS=\$/d
	END
	[ -z "$key" ] || printf 'ssh_authorized_keys:\n  - %s\n' "$(cat "$key")" >>"$out/$1.yaml"
	say "$out/$1.yaml   $3"
}
card "${gateway%%=*}" nuc.yaml "the gateway, http://${gateway#*=}:8080"
for n in $nodes; do card "$n" pi.yaml 'a node'; done
for f in $faasds; do card "${f%%=*}" faasd.yaml "faasd at ${f#*=}"; done
