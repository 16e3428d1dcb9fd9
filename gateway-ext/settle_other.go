//go:build !linux

package main

// forgetProgram is for Linux, whose small machines need it.
func forgetProgram() {}
