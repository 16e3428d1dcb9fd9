#!/bin/sh
# Install faasd on Debian, Ubuntu or Raspberry Pi OS, beside Debian's own containerd,
# runc and network plugins, so that a Thicket can use it as a node.
#
#   sudo ./install-faasd.sh --version 0.19.7 --commit HASH --sha256 HASH --password-file FILE
#
# Its unit files and settings come from its repository at that commit, the program
# from its release with that checksum. Functions of it are then deployed by the
# Thicket that has the same password in THICKET_PROVIDERS.
set -eu

version='' commit='' sha256='' password='' listen='' check=no

die() { printf 'install-faasd.sh: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
	case $1 in
	--version | --commit | --sha256 | --password-file | --listen)
		[ $# -ge 2 ] || die "$1 needs a value; see --help"
		case $1 in
		--version) version=$2 ;;
		--commit) commit=$2 ;;
		--sha256) sha256=$2 ;;
		--password-file) password=$2 ;;
		--listen) listen=$2 ;;
		esac
		shift 2
		;;
	--check) check=yes; shift ;;
	-h | --help)
		sed -n '2,9s/^# \{0,1\}//p' "$0"
		cat <<-'END'

		  --version V           release of faasd, such as 0.19.7
		  --commit HASH         the commit of that release, 40 digits
		  --sha256 HASH         the checksum of its program for this machine, 64 digits
		  --password-file FILE  what user admin logs in with, in its only line
		  --listen ADDR:PORT    where its gateway listens (default 8080 of all addresses), for a machine
		                        on which a Thicket has that port: 127.0.0.1:8088
		  --check               only look whether that is all right
		END
		exit 0
		;;
	*) die "there is no option $1; see --help" ;;
	esac
done

# hex LENGTH TEXT says whether the text is so many hexadecimal digits.
hex() { [ "${#2}" = "$1" ] && case $2 in *[!0-9a-f]*) false ;; esac }

[ -n "$version" ] || die '--version is missing: git ls-remote --tags https://github.com/openfaas/faasd lists them'
hex 40 "$commit" || die "--commit $commit: write the 40 digits that git ls-remote https://github.com/openfaas/faasd refs/tags/$version prints"
hex 64 "$sha256" || die "--sha256 $sha256: write the 64 digits of the release's checksum"
[ -s "$password" ] || die "--password-file $password: there is no such file, or nothing is in it"
case $listen in '' | *:[0-9]*) ;; *) die "--listen $listen: write 127.0.0.1:8088" ;; esac
case $(uname -m) in
x86_64) program=faasd ;;
aarch64 | arm64) program=faasd-arm64 ;;
armv7l) program=faasd-armhf ;;
*) die "there is no faasd for $(uname -m)" ;;
esac
[ $check = no ] || exit 0

[ "$(id -u)" = 0 ] || die 'this needs root: sudo ./install-faasd.sh'
for tool in containerd curl git iptables runc; do
	command -v $tool >/dev/null || die "$tool is missing: apt-get install containerd containernetworking-plugins curl git iptables runc"
done
[ -d /usr/lib/cni ] || [ -d /opt/cni/bin ] || die 'the network plugins are missing: apt-get install containernetworking-plugins'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

curl -fsSL --proto '=https' --retry 10 --retry-delay 5 --retry-all-errors -o "$work/faasd" \
	"https://github.com/openfaas/faasd/releases/download/$version/$program" || die "faasd $version can't be fetched"
echo "$sha256  $work/faasd" | sha256sum -c - >/dev/null 2>&1 || die "$program $version is not what --sha256 says: nothing was installed"
git clone -q --depth 1 --branch "$version" https://github.com/openfaas/faasd "$work/source" || die "faasd's repository can't be fetched"
[ "$(git -C "$work/source" rev-parse HEAD)" = "$commit" ] || die "the tag $version is not --commit $commit: nothing was installed"
if [ -n "$listen" ]; then
	sed -i "s|\"8080:8080\"|\"$listen:8080\"|" "$work/source/docker-compose.yaml"
	grep -q "\"$listen:8080\"" "$work/source/docker-compose.yaml" || die "faasd $version has its port elsewhere than in docker-compose.yaml: install it without --listen"
fi

install -m 0755 "$work/faasd" /usr/local/bin/faasd
if [ ! -d /opt/cni/bin ]; then # where it looks for them
	mkdir -p /opt/cni
	ln -sfn /usr/lib/cni /opt/cni/bin
fi
echo net.ipv4.conf.all.forwarding=1 >/etc/sysctl.d/99-faasd.conf
sysctl -q -p /etc/sysctl.d/99-faasd.conf
systemctl enable --now containerd
(cd "$work/source" && faasd install)
# It makes a password where there is none; ours goes in its place.
secrets=/var/lib/faasd/secrets
mkdir -p $secrets
printf admin >$secrets/basic-auth-user
(umask 077 && tr -d '\r\n' <"$password" >$secrets/basic-auth-password)
systemctl restart faasd-provider faasd
echo "faasd $version runs; its log: journalctl -u faasd -u faasd-provider"
