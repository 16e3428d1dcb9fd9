#!/bin/sh
# Install Thicket on Debian or Raspberry Pi OS, upgrade it, or remove it.
#
#   sudo ./install.sh                                   a gateway
#   sudo ./install.sh --node --join URL --token TOKEN   a node of one
#   sudo ./install.sh                                   again: upgrade, turning nobody away
#   sudo ./install.sh --uninstall [--purge]             remove it (--purge: and its data)
#
# It fetches the release for this machine from GitHub and checks it against the
# release's SHA256SUMS; --from takes a program that is here already.
set -eu

repo=https://github.com/seed-780dceda/thicket
version=latest from='' sums='' root='' kind=gateway join='' token='' tokenfile='' replace='' name='' action=install purge=no
labels=''

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

usage() {
	sed -n '2,11s/^# \{0,1\}//p' "$0"
	cat <<-'END'

	  --version V          release to install, such as v0.3.0 (default: the latest)
	  --from FILE          a gateway-ext that is here already, in place of a release
	  --sums FILE          a SHA256SUMS that is trusted already, in place of the release's
	  --token-file FILE    with a token, or the secret that gateway and nodes share
	  --node               be a node, not a gateway
	  --join URL           the gateway's address for nodes, as "gateway-ext token" prints it
	  --token TOKEN        what lets it join; needed once
	  --node-name NAME     what the node is called (default: the host's name)
	  --replace            take the place of a node of that name that is gone
	  --label NAME=VALUE   a label of the node; may be repeated
	  --root DIR           install below DIR and start nothing: for images of SD cards
	  --uninstall          remove the program and its units
	  --purge              with --uninstall: remove settings, functions and all data, too
	END
}

while [ $# -gt 0 ]; do
	case $1 in
	--version | --from | --sums | --join | --token | --token-file | --node-name | --label | --root)
		[ $# -ge 2 ] || die "$1 needs a value; see --help"
		case $1 in
		--version) version=$2 ;;
		--from) from=$2 ;;
		--sums) sums=$2 ;;
		--join) join=$2 ;;
		--token) token=$2 ;;
		--token-file) tokenfile=$2 ;;
		--node-name) name=$2 ;;
		--label) labels="$labels --label $2" ;;
		--root) root=${2%/} ;;
		esac
		shift 2
		;;
	--node) kind=node; shift ;;
	--replace) replace=' --replace'; shift ;;
	--uninstall) action=uninstall; shift ;;
	--purge) purge=yes; shift ;;
	-h | --help) usage; exit 0 ;;
	*) die "there is no option $1; see --help" ;;
	esac
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
bin=$root/usr/local/bin/gateway-ext
units=$root/etc/systemd/system
conf=$root/etc/thicket
data=$root/var/lib/thicket

# systemctl is left alone when what is installed is not this machine.
ctl() { [ -n "$root" ] || systemctl "$@"; }

[ -n "$root" ] || [ "$(id -u)" = 0 ] || die 'this needs root: sudo ./install.sh'
[ -n "$root" ] || command -v systemctl >/dev/null || die 'this machine has no systemd: start gateway-ext by what it has in its place'
[ -z "$root" ] || [ -d "$root" ] || die "--root $root: there is no such folder"

if [ "$action" = uninstall ]; then
	for unit in thicket-gateway.socket thicket-gateway.service thicket-node.service; do
		[ ! -e "$units/$unit" ] || ctl disable --now "$unit" || true # it may not be running
		rm -f "$units/$unit"
	done
	ctl daemon-reload
	rm -f "$bin" "$bin.new"
	if [ $purge = yes ]; then
		rm -rf "$conf" "$data"
		say 'Thicket is removed, with all of its data.'
	else
		say "Thicket is removed. Its data is still in $data, its settings in $conf: --purge removes them, too."
	fi
	exit 0
fi
[ $purge = no ] || die '--purge goes with --uninstall'
[ -z "$tokenfile" ] || [ -f "$tokenfile" ] || die "--token-file $tokenfile: there is no such file"
[ -z "$tokenfile" ] || [ -z "$token" ] || die 'give either --token or --token-file'
[ $kind = node ] || [ -z "$join$token$replace$name$labels" ] || die '--join, --token, --replace, --node-name and --label go with --node'
case "$join" in '' | https://*) ;; *) die "--join $join: write the address as gateway-ext token prints it: https://host:8090" ;; esac

# What this machine is, as releases are named.
platform() {
	case $(uname -m) in
	x86_64) say linux_amd64 ;;
	aarch64 | arm64)
		# Raspberry Pi OS of 32 bits may run below a kernel of 64.
		if [ "$(getconf LONG_BIT 2>/dev/null || say 64)" = 32 ]; then say linux_armv7; else say linux_arm64; fi
		;;
	armv7l) say linux_armv7 ;;
	armv6l) say linux_armv6 ;;
	*) die "there is no release for $(uname -m): build it with make build, and use --from bin/gateway-ext" ;;
	esac
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

if [ -n "$from" ]; then
	[ -f "$from" ] || die "--from $from: there is no such file"
	cp "$from" "$work/gateway-ext"
else
	command -v curl >/dev/null || die 'curl is missing: apt-get install curl'
	file=gateway-ext_$(platform)
	base=$repo/releases/download/$version
	[ "$version" != latest ] || base=$repo/releases/latest/download
	say "Fetching $file ($version) ..."
	curl -fsSL --proto '=https' -o "$work/$file" "$base/$file" || die "$base/$file can't be fetched"
	if [ -n "$sums" ]; then
		cp "$sums" "$work/SHA256SUMS" || die "--sums $sums: there is no such file"
	else
		curl -fsSL --proto '=https' -o "$work/SHA256SUMS" "$base/SHA256SUMS" || die "$base/SHA256SUMS can't be fetched"
	fi
	(cd "$work" && grep " $file\$" SHA256SUMS >sum && sha256sum -c sum >/dev/null 2>&1) ||
		die "$file is not what the release's SHA256SUMS says: nothing was installed. Try again; if it stays so, tell us"
	mv "$work/$file" "$work/gateway-ext"
fi
chmod 0755 "$work/gateway-ext"
if [ -z "$root" ]; then
	new=$("$work/gateway-ext" version) || die 'the program does not run on this machine: is it for another kind of processor?'
	say "Installing $new"
fi

old=no
[ ! -e "$bin" ] || old=yes
mkdir -p "$(dirname "$bin")" "$units" "$conf"
cp "$work/gateway-ext" "$bin.new" && mv "$bin.new" "$bin" # never half a program
[ -e "$conf/$kind.env" ] || printf '%s\n' '# Settings, one a line: THICKET_LOG_LEVEL=DEBUG. The README has a table of them.' >"$conf/$kind.env"
chmod 0600 "$conf/$kind.env"
if [ $kind = gateway ]; then
	cp "$here/thicket-gateway.socket" "$units/"
fi
cp "$here/thicket-$kind.service" "$units/"

# setting NAME VALUE puts a setting into the unit's file.
setting() {
	{
		grep -v "^$1=" "$conf/$kind.env" || true # there is none yet
		printf '%s=%s\n' "$1" "$2"
	} >"$conf/$kind.env.new"
	chmod 0600 "$conf/$kind.env.new"
	cmp -s "$conf/$kind.env.new" "$conf/$kind.env" || changed=yes
	mv "$conf/$kind.env.new" "$conf/$kind.env"
}
changed=no

# What lets nodes join is kept where root alone can read it, and nobody sees it in
# the list of processes.
if [ -n "$token$tokenfile" ]; then
	(umask 077 && if [ -n "$token" ]; then printf '%s\n' "$token"; else cat "$tokenfile"; fi >"$work/token")
	mv "$work/token" "$conf/token"
	setting THICKET_TOKEN_FILE /etc/thicket/token
fi
if [ $kind = node ] && [ -n "$join" ]; then
	setting NODE_ARGS "--join $join${name:+ --node-name $name}$replace$labels"
fi

ctl daemon-reload
if [ $kind = gateway ]; then
	if [ $changed = yes ] && [ $old = yes ] && [ -z "$root" ] && systemctl is-active --quiet thicket-gateway.service; then
		ctl restart thicket-gateway.service # settings are read at the start alone; clients wait
		say 'Upgraded, and started again with the new settings.'
	elif [ $old = yes ] && [ -z "$root" ] && systemctl is-active --quiet thicket-gateway.service; then
		ctl reload thicket-gateway.service
		say 'Upgraded. The gateway takes over in place: nobody was turned away.'
	else
		ctl enable --now thicket-gateway.socket thicket-gateway.service
		say 'Installed. The gateway listens on port 8080; its log says how to log in:'
		say '  journalctl -u thicket-gateway'
	fi
else
	ctl enable thicket-node.service
	ctl restart thicket-node.service
	say 'Installed. Whether the node has joined, its log says:'
	say '  journalctl -u thicket-node'
fi
