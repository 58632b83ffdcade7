package openflow

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"antrea.io/libOpenflow/openflow15"
)

// exchange is a request that waits for messages with IDs in [first, first+count).
type exchange struct {
	first, count uint32
	handle       func(i uint32, m message) // called by the reader, in order; m's ID is first+i
}

// begin reserves count message IDs, whose messages go to handle until end.
func (c *Conn) begin(count int, handle func(uint32, message)) (*exchange, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if count > math.MaxInt32 {
		return nil, fmt.Errorf("request of %d messages is too long", count)
	}
	if c.xid > math.MaxUint32-uint32(count) {
		c.xid = 1
	}
	e := &exchange{first: c.xid, count: uint32(count), handle: handle}
	c.xid += e.count
	c.pending = append(c.pending, e)
	return e, nil
}

// end makes late messages for e be skipped.
func (c *Conn) end(e *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = slices.DeleteFunc(c.pending, func(p *exchange) bool { return p == e })
}

func (c *Conn) dispatch(m message) {
	c.mu.Lock()
	i := slices.IndexFunc(c.pending, func(e *exchange) bool { return m.xid()-e.first < e.count })
	var e *exchange
	if i >= 0 {
		e = c.pending[i]
	}
	c.mu.Unlock()
	if e != nil {
		e.handle(m.xid()-e.first, m)
	}
}

// write lets f write messages. When ctx ends while f writes, a message may be left cut
// in two, so the connection ends too.
func (c *Conn) write(ctx context.Context, f func(*bufio.Writer) error) error {
	select {
	case <-c.writing:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { c.writing <- struct{}{} }()
	stop := context.AfterFunc(ctx, func() { c.fail(fmt.Errorf("write request: %w", context.Cause(ctx))) })
	defer stop()
	if err := errors.Join(f(c.out), c.out.Flush()); err != nil {
		c.fail(fmt.Errorf("write request: %w", err))
		return c.Err()
	}
	return nil
}

// wait waits for one value of signal.
func (c *Conn) wait(ctx context.Context, signal <-chan error) error {
	select {
	case err := <-signal:
		return err
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call sends one request and hands its replies to handle, until that has all of them or
// fails. An error message of the switch ends the call.
func (c *Conn) call(ctx context.Context, request func(xid uint32) ([]byte, error), handle func(message) (bool, error)) error {
	result := make(chan error, 1)
	ended, size := false, 0
	e, err := c.begin(1, func(_ uint32, m message) {
		if ended {
			return
		}
		var done bool
		var err error
		if size += len(m); size > c.opts.MaxReply {
			err = fmt.Errorf("reply is longer than %d bytes", c.opts.MaxReply)
		} else if m.kind() == openflow15.Type_Error {
			err = parseError(m)
		} else {
			done, err = handle(m)
		}
		if done || err != nil {
			ended = true
			result <- err
		}
	})
	if err != nil {
		return err
	}
	defer c.end(e)
	b, err := request(e.first)
	if err != nil {
		return err
	}
	if err := c.write(ctx, func(w *bufio.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return err
	}
	return c.wait(ctx, result)
}

func unexpected(m message) error { return fmt.Errorf("unexpected message of type %d", m.kind()) }

// Role is what a switch lets a controller do.
type Role uint32

// The roles. A switch has at most one Primary; a Secondary may only read.
const (
	Equal     Role = openflow15.CR_ROLE_EQUAL
	Primary   Role = openflow15.CR_ROLE_MASTER
	Secondary Role = openflow15.CR_ROLE_SLAVE
)

// Role asks the switch for a role. generation is the leader's term: a switch refuses one
// that is older than any that it has seen with ErrStale. Equal needs none.
func (c *Conn) Role(ctx context.Context, role Role, generation uint64) error {
	err := c.call(ctx, func(xid uint32) ([]byte, error) {
		r := openflow15.NewRoleRequest()
		r.Role, r.GenerationId = uint32(role), generation
		return encode(r, xid)
	}, func(m message) (bool, error) {
		parsed, err := parse(m)
		if err != nil {
			return false, err
		}
		if r, ok := parsed.(*openflow15.RoleReply); !ok || Role(r.Role) != role {
			return false, unexpected(m)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("ask switch for role %d in generation %d: %w", role, generation, err)
	}
	return nil
}

// Barrier returns when the switch has finished everything that was sent before.
func (c *Conn) Barrier(ctx context.Context) error {
	err := c.call(ctx, func(xid uint32) ([]byte, error) { return plain(openflow15.Type_BarrierRequest, xid), nil },
		func(m message) (bool, error) {
			if m.kind() != openflow15.Type_BarrierReply {
				return false, unexpected(m)
			}
			return true, nil
		})
	if err != nil {
		return fmt.Errorf("wait for switch: %w", err)
	}
	return nil
}
