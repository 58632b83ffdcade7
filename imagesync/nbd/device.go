package nbd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
)

// Device is a disk. Its methods are called from several goroutines at once; ranges are never
// empty and always within its size. An error that is or wraps a syscall.Errno reaches the
// client as that, if the protocol knows it; any other is EIO.
type Device interface {
	// Size is in bytes. It does not change while clients are connected.
	Size() int64
	// ReadAt fills p.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes all of p. With fua it returns once p is where a flush would bring it.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Flush returns once all that has been written, trimmed and zeroed would outlive a crash.
	Flush(ctx context.Context) error
	// Trim says that nobody needs the content of the range any more.
	Trim(ctx context.Context, off, n int64) error
	// Zero makes the range zeros. Only if mayTrim may it give space back.
	Zero(ctx context.Context, off, n int64, mayTrim bool) error
	// Extents yields what stands in the range: in order, from off on, without gaps, until the
	// range is covered or yield returns false.
	Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error
}

// Extent is a part of a device, as block status tells it (base:allocation).
type Extent struct {
	Length int64 // bytes, more than 0
	Hole   bool  // it has no space of its own
	Zero   bool  // it reads as zeros
}

// Immediate is a device that can answer many reads at once.
type Immediate interface {
	// ReadNow fills p if that needs no waiting, for a disk, a network or a lock that is held
	// while somebody waits. Else it returns false; p may then have been written to.
	ReadNow(p []byte, off int64) bool
}

// Backed is a device of which something stands in files as it is. Large reads of it need not
// be copied.
type Backed interface {
	// Backing returns a file in which the range stands, in one piece, and where; nil: there
	// is none. What stands there must change only as this range of the device does, even
	// after the device has put the range elsewhere: the client may be about to read it.
	Backing(off, n int64) (f *os.File, at int64)
}

// Tracker is a device that knows what was written since its last commit.
type Tracker interface {
	// Dirty yields the parts of a range that were, in order and within it, until yield
	// returns false.
	Dirty(ctx context.Context, off, n int64, yield func(off, n int64) bool) error
}

// FastZeroer is a device that knows whether it zeroes faster than zeros would be written.
type FastZeroer interface {
	// ZeroFast is Zero, or returns ErrNotFast at once and has done nothing.
	ZeroFast(ctx context.Context, off, n int64, mayTrim bool) error
}

// ErrNotFast says that a range cannot be zeroed faster than by writing zeros.
var ErrNotFast = errors.New("zeroing is not fast here")

// Prefetcher is a device that can be told what will be read soon.
type Prefetcher interface {
	// Prefetch returns when the range is at hand, or on its way.
	Prefetch(ctx context.Context, off, n int64) error
}

// Export is what a client gets under a name.
type Export struct {
	Device      Device
	ReadOnly    bool
	MultiConn   bool   // a flush on one connection covers the writes of all
	Description string // for people
	Release     func() // called once the connection needs the device no more; may be nil
}

// Exports says what there is. It is asked for each connection.
type Exports interface {
	// Export opens an export. The name may be empty: the client wants the default one. An
	// error that wraps ErrNoExport is the client's, any other is also logged.
	Export(ctx context.Context, name string) (Export, error)
	// Names lists exports for a client that asks.
	Names(ctx context.Context) ([]string, error)
}

// ErrNoExport says that there is no export of that name.
var ErrNoExport = errors.New("no such export")

// Static are exports that stay. The default one is that of the empty name, or the only one.
type Static map[string]Export

// Export implements Exports.
func (s Static) Export(_ context.Context, name string) (Export, error) {
	if e, ok := s[name]; ok {
		return e, nil
	}
	if name == "" && len(s) == 1 {
		for _, e := range s {
			return e, nil
		}
	}
	return Export{}, fmt.Errorf("open %q: %w", name, ErrNoExport)
}

// Names implements Exports.
func (s Static) Names(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(s)), nil
}

// flags are what a client is told of an export.
func (e Export) flags(structured bool) uint16 {
	f := uint16(flagHasFlags | flagFlush)
	if e.ReadOnly {
		f |= flagReadOnly
	} else {
		f |= flagsOfReadWrite
		if _, ok := e.Device.(FastZeroer); ok {
			f |= flagFastZero
		}
	}
	if structured {
		f |= flagDF
	}
	if e.MultiConn {
		f |= flagMultiConn
	}
	if _, ok := e.Device.(Prefetcher); ok {
		f |= flagCache
	}
	return f
}

func (e Export) release() {
	if e.Release != nil {
		e.Release()
	}
}
