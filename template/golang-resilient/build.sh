#!/bin/sh
# Turns a build context (this template, and the function's own files in
# function/) into a program. The Dockerfile and "gateway-ext build" both run it,
# so a function is the same whoever builds it.
#
#   build.sh assemble [HANDLER]  puts main beside the handler, in the handler's module
#   build.sh compile PROGRAM     compiles it for TARGETOS, TARGETARCH, TARGETVARIANT
#
# function/ is the root of a Go module: the handler's own go.mod, or one that
# configuration.copy in the stack file has put there. In the second case HANDLER
# (a build_arg) may name the handler's folder in that module, such as
# functions/hello: its files are put there too, so that its import path is the
# one it has where it is developed, and packages named internal, or below it,
# are found.
set -eu
go=${GO:-go}
export GOWORK=off
cd function

case $1 in
assemble)
	at=${2:-}
	at=${at#./}
	at=${at%/}

	if ! grep -q 'Handle[ (]' ./*.go; then
		echo 'there is no func Handle(w http.ResponseWriter, r *http.Request) in the handler folder' >&2
		exit 1
	fi
	# The template's sample is in the way if the function has its Handle in
	# a file of another name.
	if grep -q '^// Sample: ' handler.go 2>/dev/null && [ "$(grep -l '^func Handle(' ./*.go | wc -l)" -gt 1 ]; then
		rm handler.go
	fi
	[ -f go.mod ] || printf 'module handler/function\n\ngo 1.26\n' >go.mod

	if [ -n "$at" ]; then
		mkdir -p "$at"
		for f in * .[!.]*; do
			case $f in
			go.mod | go.sum | vendor | "${at%%/*}" | '.[!.]*') ;; # stay where they are
			*) cp -R "$f" "$at/" ;;
			esac
		done
	fi

	module=$("$go" list -m)
	mkdir -p thicketmain/resilient
	cp ../resilient/*.go thicketmain/resilient/
	rm -f thicketmain/resilient/*_test.go
	sed -e '/^\/\/go:build ignore$/d' \
		-e "s#\"handler/function\"#\"$module${at:+/$at}\"#" \
		-e "s#\"handler/resilient\"#\"$module/thicketmain/resilient\"#" \
		../main.go >thicketmain/main.go
	;;
compile)
	CGO_ENABLED=0
	GOOS=${TARGETOS:-$("$go" env GOOS)}
	GOARCH=${TARGETARCH:-$("$go" env GOARCH)}
	export CGO_ENABLED GOOS GOARCH
	variant=${TARGETVARIANT:-}
	case $GOARCH in
	arm) GOARM=${variant#v} GOARM=${GOARM:-7} && export GOARM ;;
	amd64) GOAMD64=${variant:-v1} && export GOAMD64 ;;
	esac
	# go-redis writes each of its 500 commands ten times: not inlined into each
	# other they are a megabyte less of each image (7.4 instead of 8.4 MB).
	exec "$go" build -trimpath -buildvcs=false -gcflags=github.com/redis/go-redis/v9=-l -ldflags='-s -w -buildid=' -o "$2" ./thicketmain
	;;
*)
	echo "usage: build.sh assemble [HANDLER] | compile PROGRAM" >&2
	exit 2
	;;
esac
