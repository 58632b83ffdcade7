package libvirt

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
)

// GiveTo makes the user that QEMU runs as the owner of a path, unless its name is empty.
func GiveTo(name, path string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("find QEMU's user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("find QEMU's user: %w", err)
	}
	return os.Chown(path, uid, gid)
}
