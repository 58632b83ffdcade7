package disk

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A lock is one handle's, and given back by Close even if there is another descriptor of it, as
// a process that is just being started has.
func TestLock(t *testing.T) {
	t.Parallel()
	d := OSDirectory(t.TempDir())
	lock, err := d.Lock("lock", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock("lock", false); !errors.Is(err, ErrInUse) {
		t.Errorf("locked twice: %v", err)
	}
	inherited, err := unix.Dup(int(lock.(osLock).Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := d.Lock("lock", false)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
