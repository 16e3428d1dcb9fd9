//go:build !linux

package image

// runs32 is only asked on 64-bit ARM: Apple's processors run no 32-bit programs,
// and of others nothing is known.
func runs32() bool { return false }
