package site

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"heliotrope/imagesync/volume"
)

// Moves are what a volume remembers of moves from one directory to another. A move is a random name
// that both ends write down; who has it knows that the other's volume was what his own is, at one
// moment: at the source the last before its volume is left (Left), at the destination the first
// before anybody but the move writes to it (Arrive).
type Moves struct {
	// Came is by which the volume came here. When it began, Since marks had been made of the volume;
	// once there are more, what is clean is as it was when it came.
	Came  string `json:"came,omitempty"`
	Since uint64 `json:"since,omitempty"`
	// Leaves is by which it is to be taken away.
	Leaves string `json:"leaves,omitempty"`
	// Left is by which it was: it is as it was then, nobody writes to it, and it is kept in case it
	// comes back. It is no volume any more, until somebody opens it; then it is no such thing any more.
	Left string `json:"left,omitempty"`
}

// Leave begins to take the volume away, and returns by what name; came is that by which it came,
// if what has changed since then is known. What clients were told for another move ends.
func (d *Disk) Leave() (move, came string, err error) {
	d.telling.Store(nil)
	o := d.Origin
	o.Moves.Leaves = rand.Text()
	if err := d.remember(o); err != nil {
		return "", "", err
	}
	if d.arrived() {
		came = o.Moves.Came
	}
	return o.Moves.Leaves, came, nil
}

// Stay says that the volume is not taken away after all.
func (d *Disk) Stay() error {
	d.telling.Store(nil)
	if d.Origin.Moves.Leaves == "" {
		return nil
	}
	o := d.Origin
	o.Moves.Leaves = ""
	return d.remember(o)
}

// Come says that a move brings the volume, or what it has become since it left.
func (d *Disk) Come(move string) error {
	o := d.Origin
	o.Moves = Moves{Came: move, Since: d.Marks()}
	return d.remember(o)
}

// Arrive says that all has come, and that from now on others write. Only the first time counts.
func (d *Disk) Arrive(ctx context.Context) error {
	if d.Origin.Moves.Came == "" || d.arrived() {
		return nil
	}
	return d.Mark(ctx)
}

// arrived says whether what is clean is as it came.
func (d *Disk) arrived() bool { return d.Origin.Moves.Came != "" && d.Marks() > d.Origin.Moves.Since }

// forgetMoves makes what is dirty count from the last commit again.
func (d *Disk) forgetMoves(ctx context.Context) error {
	if d.Origin.Moves == (Moves{}) {
		return nil
	}
	if err := d.Unmark(ctx); err != nil {
		return err
	}
	o := d.Origin
	o.Moves = Moves{}
	return d.remember(o)
}

// Keep makes of a volume that leaves one that has left. It is closed, and flushed. kept is false
// where there is none that leaves.
func Keep(dir, name string) (kept bool, err error) {
	o, err := ReadOrigin(dir, name)
	if err != nil || o.Moves.Leaves == "" {
		return false, err
	}
	o.Moves = Moves{Left: o.Moves.Leaves}
	d := &Disk{Name: name, dir: filepath.Join(dir, volumesDir, name)}
	if err := d.remember(o); err != nil {
		return false, err
	}
	return true, nil
}

// Kept is where the files of a volume that has left are, and when it left.
func Kept(dir, name string) (files string, when time.Time, err error) {
	at := filepath.Join(dir, volumesDir, name)
	info, err := os.Stat(filepath.Join(at, originFile))
	if err != nil {
		return "", when, fmt.Errorf("look at volume %s: %w", name, err)
	}
	return filepath.Join(at, diskDir), info.ModTime(), nil
}

// Has is what a destination has of a volume that is about to come.
type Has string

// What a destination can have.
const (
	HasBase Has = "base" // what the volume stands on
	HasLeft Has = "left" // what the volume was when it left there
)

var errOtherMove = errors.New("that is not what was agreed on")

// telling is what a client is told that copies a volume.
type telling struct {
	has    volume.Copy
	client int
}

// Tell tells a client, which is such a process, what the destination of a move has: it is not
// allocated to it, and neither zeros (volume.ExtentsBut). Others want to know what there is, and are
// told that. spared is how many bytes the destination has now. It ends with end.
func (d *Disk) Tell(move string, has Has, client int) (spared int64, end func(), err error) {
	if move == "" || d.Origin.Moves.Leaves != move || client == 0 {
		return 0, nil, fmt.Errorf("tell what another host has of volume %s: %w", d.Name, errOtherMove)
	}
	t := &telling{client: client}
	switch {
	case has == HasBase:
		t.has = volume.BaseCopy
	case has == HasLeft && d.arrived():
		t.has = volume.MarkCopy
	default:
		return 0, nil, fmt.Errorf("tell what another host has of volume %s: %w", d.Name, errOtherMove)
	}
	d.telling.Store(t)
	return d.Spared(t.has), func() { d.telling.CompareAndSwap(t, nil) }, nil
}

// told is what a client is told.
func (d *Disk) told(client int) volume.Copy {
	if t := d.telling.Load(); t != nil && client == t.client {
		return t.has
	}
	return volume.NoCopy
}
