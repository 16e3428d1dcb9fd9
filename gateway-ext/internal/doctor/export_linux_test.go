package doctor

// MountOf is mountOf for tests: the mount point, the device's number and the
// file system's kind.
func MountOf(mounts, path string) (point, device, system string) {
	m := mountOf(mounts, path)
	return m.point, m.device, m.system
}

// Listening is listening for tests.
var Listening = listening
