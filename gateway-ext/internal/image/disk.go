package image

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// isDiskFull tells whether an error means that there is no room, or none for
// this user.
func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isDisk tells an error of this machine's disk from one of the network.
func isDisk(err error) bool {
	if isDiskFull(err) {
		return true
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true
	}
	_, ok := errors.AsType[*os.LinkError](err)
	return ok
}

// syncLayer makes a layer last over a power cut: without it, a layer could be
// found afterwards with all its names and empty files. A few files are synced
// one by one, which concerns nobody else; for many, one sync of the whole file
// system is faster.
func syncLayer(dir *os.Root) error {
	const few = 64
	index, err := dir.Open(layerIndex)
	if err != nil {
		return err
	}
	defer index.Close()
	files, err := fs.ReadDir(dir.FS(), layerFiles)
	if err != nil {
		return err
	}
	if len(files) > few && canSyncAll {
		return syncAll(index)
	}
	for _, e := range files {
		if err := syncFile(dir, layerFiles+"/"+e.Name()); err != nil {
			return err
		}
	}
	return errors.Join(index.Sync(), syncFile(dir, layerFiles), syncFile(dir, "."))
}

// syncFile makes a file, or the names in a folder, last over a power cut.
func syncFile(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
