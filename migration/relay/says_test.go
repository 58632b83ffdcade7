package relay

import (
	"bytes"
	"testing"
	"time"
)

// heard is what a listener hears.
type heard struct {
	bytes.Buffer
	ended   bool
	rebuilt []uint64
	lags    []time.Duration
	asked   []uint64
}

func (h *heard) CloseWrite() error { h.ended = true; return nil }

func (h *heard) listener() *listener {
	return &listener{
		hypervisor: h,
		rebuilt: func(n uint64, lag time.Duration) error {
			h.rebuilt, h.lags = append(h.rebuilt, n), append(h.lags, lag)
			return nil
		},
		again: func(n uint64) error { h.asked = append(h.asked, n); return nil },
	}
}

func TestSays(t *testing.T) {
	var wire bytes.Buffer
	s := says{w: &wire}
	long := bytes.Repeat([]byte("return path "), 20000)
	if err := s.rebuilt(1, 3*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := s.again(2); err != nil {
		t.Fatal(err)
	}
	if err := s.answers(bytes.NewReader(long)); err != nil {
		t.Fatal(err)
	}
	if err := s.rebuilt(300, -1); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(wire.Bytes())
	var h heard
	if err := h.listener().listen(&wire); err != nil {
		t.Fatal(err)
	}
	if !h.ended || !bytes.Equal(h.Bytes(), long) || len(h.rebuilt) != 2 || h.rebuilt[1] != 300 || h.lags[0] != 3*time.Millisecond || h.lags[1] != 0 || len(h.asked) != 1 || h.asked[0] != 2 {
		t.Errorf("heard %d bytes, ended: %t, rebuilt %v after %v, asked %v", h.Len(), h.ended, h.rebuilt, h.lags, h.asked)
	}
	for _, n := range []int{1, 4, 8, len(whole) - 1} {
		if err := new(heard).listener().listen(bytes.NewReader(whole[:n])); err == nil {
			t.Errorf("%d bytes of %d are no error", n, len(whole))
		}
	}
}

func FuzzListener(f *testing.F) {
	f.Add([]byte("a\x00\x00\x00\x03abce\x00\x00\x00\x00r\x00\x00\x00\x02\x01\x05g\x00\x00\x00\x01\x07"))
	f.Add([]byte("a\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h heard
		if err := h.listener().listen(bytes.NewReader(b)); err == nil && h.Len() > len(b) {
			t.Errorf("%d bytes of %d", h.Len(), len(b))
		}
	})
}
