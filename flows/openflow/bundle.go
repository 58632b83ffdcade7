package openflow

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
)

const (
	bundleFlags = openflow15.BF_ATOMIC | openflow15.BF_ORDERED

	// echoEvery is how many changes are written between two echo requests, so that the
	// switch is heard while a long bundle is being sent.
	echoEvery = 2048

	// maxRefusals is how many refused flows a BundleError keeps.
	maxRefusals = 100
)

// Refusal is a flow that a switch did not take.
type Refusal struct {
	Flow flows.Flow
	Err  error // an *Error
}

// BundleError says that a switch took nothing of a bundle, and which flows it refused.
type BundleError struct {
	Refusals []Refusal // at most 100
	Err      error     // what was said of the bundle as a whole; may be nil
}

func (e *BundleError) Error() string {
	if len(e.Refusals) == 0 {
		return fmt.Sprintf("switch refused the bundle: %v", e.Err)
	}
	r := e.Refusals[0]
	return fmt.Sprintf("switch refused the bundle for %d or more flows, the first: %v: %v", len(e.Refusals), r.Flow, r.Err)
}

func (e *BundleError) Unwrap() []error {
	errs := []error{e.Err}
	for _, r := range e.Refusals {
		errs = append(errs, r.Err)
	}
	return errs
}

// Bundle removes flows and then puts others, in this order, all at once or not at all. A
// put flow takes the place of one with the same key. Flows that are not ours are never
// removed. A *BundleError says which flows the switch refused; nothing has changed then.
func (c *Conn) Bundle(ctx context.Context, put, remove []flows.Flow) error {
	mods := make([]flowMod, 0, len(put)+len(remove))
	for _, f := range remove {
		mods = append(mods, flowMod{command: openflow15.FC_DELETE_STRICT, flow: f})
	}
	for _, f := range put {
		mods = append(mods, flowMod{command: openflow15.FC_ADD, flow: f})
	}
	return c.apply(ctx, mods)
}

// bundling is what the reader learns of a bundle while it is sent. Its message IDs are,
// in this order: open, every change, barrier, commit, barrier.
type bundling struct {
	mods     []flowMod
	barriers chan error // one value for each barrier's reply

	mu  sync.Mutex
	err BundleError
	bad bool
}

func (b *bundling) handle(i uint32, m message) {
	switch m.kind() {
	case openflow15.Type_BarrierReply:
		select {
		case b.barriers <- nil:
		default:
		}
	case openflow15.Type_Error:
		b.refused(int(i)-1, parseError(m))
	}
}

// refused notes an error about the i-th change, or about the bundle where there is no such.
func (b *bundling) refused(i int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = true
	if i < 0 || i >= len(b.mods) {
		b.err.Err = errors.Join(b.err.Err, err)
	} else if len(b.err.Refusals) < maxRefusals {
		b.err.Refusals = append(b.err.Refusals, Refusal{b.mods[i].flow, err})
	}
}

func (b *bundling) result() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.bad {
		return nil
	}
	return &BundleError{Refusals: append([]Refusal(nil), b.err.Refusals...), Err: b.err.Err}
}

// apply carries out changes as one bundle. A change that a switch cannot even read is
// not in the bundle when it is committed, so the bundle is committed only once the
// switch has taken every change without an error.
func (c *Conn) apply(ctx context.Context, mods []flowMod) error {
	if len(mods) == 0 {
		return nil
	}
	b := &bundling{mods: mods, barriers: make(chan error, 2)}
	e, err := c.begin(len(mods)+4, b.handle)
	if err != nil {
		return fmt.Errorf("send bundle: %w", err)
	}
	defer c.end(e)
	c.mu.Lock()
	c.bundle++
	id := c.bundle
	c.mu.Unlock()
	if err := c.fillBundle(ctx, b, id, e.first); err != nil {
		return fmt.Errorf("send bundle: %w", err)
	}
	barrier := e.first + e.count - 1
	if err := b.result(); err != nil {
		discard := func(w *bufio.Writer) error {
			return writeControl(w, id, openflow15.BCT_DISCARD_REQUEST, barrier-1)
		}
		return errors.Join(err, c.write(ctx, discard))
	}
	err = c.write(ctx, func(w *bufio.Writer) error {
		err := writeControl(w, id, openflow15.BCT_COMMIT_REQUEST, barrier-1)
		_, err2 := w.Write(plain(openflow15.Type_BarrierRequest, barrier))
		return errors.Join(err, err2)
	})
	if err == nil {
		err = c.wait(ctx, b.barriers)
	}
	if err != nil {
		return fmt.Errorf("commit bundle: %w", err)
	}
	return b.result()
}

// fillBundle opens a bundle, puts all changes into it, and waits until the switch has
// read them. It waits for nothing in between.
func (c *Conn) fillBundle(ctx context.Context, b *bundling, id, first uint32) error {
	err := c.write(ctx, func(w *bufio.Writer) error {
		if err := writeControl(w, id, openflow15.BCT_OPEN_REQUEST, first); err != nil {
			return err
		}
		var buf []byte
		for i, m := range b.mods {
			buf = appendBundled(buf[:0], m, id, first+1+uint32(i))
			if i%echoEvery == echoEvery-1 {
				buf = append(buf, plain(openflow15.Type_EchoRequest, 0)...)
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
		_, err := w.Write(plain(openflow15.Type_BarrierRequest, first+1+uint32(len(b.mods))))
		return err
	})
	if err != nil {
		return err
	}
	return c.wait(ctx, b.barriers)
}

func writeControl(w *bufio.Writer, id uint32, kind uint16, xid uint32) error {
	b, err := encode(openflow15.NewBundleCtrl(id, kind, bundleFlags), xid)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
