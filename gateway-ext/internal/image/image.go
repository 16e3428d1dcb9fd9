// Package image is about OCI images, from a function's source to files that
// can be run: it builds them without Docker, serves them, pulls them and
// unpacks them.
//
// [Build] compiles a function and makes an image index of it; [Push] sends that
// to a registry. [Registry] is such a registry, on this machine's disk, served
// at /v2/. [Store] brings images from any registry onto this machine and keeps
// them unpacked, each layer once, whatever number of images is made of it.
//
// What comes from a registry is written by strangers. A [Store] believes
// nothing of it: every byte is verified against the digest it was asked for
// before it is read, every size and count is bounded, and no name, link or
// device in a layer reaches a file outside of the image's own tree.
//
// Errors are of the kinds of package faas and are sentences that name the image
// and say what to do.
package image
