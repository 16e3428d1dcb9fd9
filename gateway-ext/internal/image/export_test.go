package image

import (
	"context"
	"io"
	"os"
)

// UnpackAndPlant unpacks layers below dir, lays them over one another and plants
// the tree, without a registry: what the fuzz test hammers at.
func UnpackAndPlant(ctx context.Context, dir string, maxBytes int64, maxNames int, layers ...io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := newTree(maxNames)
	for i, r := range layers {
		name := "layer" + string(rune('a'+i))
		if err := root.Mkdir(name, 0o700); err != nil {
			return err
		}
		layer, err := root.OpenRoot(name)
		if err != nil {
			return err
		}
		_, _, err = unpackLayer(ctx, r, layer, bounds{bytes: maxBytes, names: maxNames})
		layer.Close()
		if err != nil {
			return err
		}
		entries, err := readIndex(root, name)
		if err != nil {
			return err
		}
		if err := t.lay(entries, func(n int) string { return name + "/" + contentPath(n) }); err != nil {
			return err
		}
	}
	t.addMounts()
	return t.plant(root, rootfs)
}

// ErrHostile is what UnpackAndPlant refuses a layer with.
var ErrHostile = errHostile
