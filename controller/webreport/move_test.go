package webreport

import (
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/migration"
)

// sampleMove is a VM that went around half of the earth.
func sampleMove() api.Migration {
	m := api.Migration{ID: "m-7f3k", VM: "web", From: "us-1", To: "asia-1", Phase: api.PhaseSucceeded, Progress: 1, CreatedAt: noon,
		Measured: api.Measured{PauseMs: 404.2, Bytes: 67_800_000, DiskBytes: 1_800_000, SparedBytes: 31_700_000, Rounds: 4, CodecMs: 1530,
			Memory: []migration.Encoded{{Kind: "zero", Pages: 36421, Stream: 327_800}, {Kind: "same", Pages: 3347, Stream: 13_700_000, Wire: 210}, {Kind: "dup", Pages: 1706, Stream: 7_000_000, Wire: 4100},
				{Kind: "delta", Pages: 558, Stream: 2_300_000, Wire: 65_100}, {Kind: "literal", Pages: 16978, Stream: 69_700_000, Wire: 31_100_000}, {Kind: "noise", Pages: 10039, Stream: 41_200_000, Wire: 41_100_000},
				{Kind: "verbatim", Pages: 498, Stream: 318_000, Wire: 25_000}, {Kind: "heads", Wire: 38_000}},
			DiskWrites: []migration.DiskWrites{{Stretch: migration.WritesBefore, Seconds: 1.3, Writes: 24, WriteMs: 0.4, Flushes: 24, FlushMs: 1.2}, {Stretch: migration.WritesBulk, Seconds: 2.1, Writes: 40, WriteMs: 0.9, Flushes: 40, FlushMs: 1.9},
				{Stretch: migration.WritesMirror, Seconds: 4.2, Writes: 80, WriteMs: 1.3, Flushes: 80, FlushMs: 2.4}, {Stretch: migration.WritesAfter, Seconds: 2.1, Writes: 41, WriteMs: 0.5, Flushes: 41, FlushMs: 1.4}},
			Passes: []migration.Pass{{Sent: 90_800_000, Wire: 60_500_000, Dirty: 11_600_000, TookMs: 5717.5, PauseMs: 727.4, Why: "the pause would be 727ms, longer than 300ms"},
				{Sent: 11_600_000, Wire: 5_000_000, Dirty: 2_100_000, TookMs: 603.6, PauseMs: 87.2, Why: "rounds are getting shorter"},
				{Sent: 3_500_000, Wire: 677_700, Dirty: 57_300, TookMs: 92.9, PauseMs: 1.1, Stop: true, Why: "the rest takes no time"}}}}
	for _, p := range []struct {
		name string
		took float64
	}{{"Pending", 0}, {"Preflight", 0.02}, {"SyncImage", 0.01}, {"Prepare", 1.2}, {"PreCopy", 6.3}, {"Switchover", 0.31}, {"Commit", 0.005}, {"Activate", 0.09}, {"Converge", 0.08}, {"Cleanup", 2}, {"Succeeded", 0}} {
		at := noon
		if n := len(m.Phases); n > 0 {
			at = m.Phases[n-1].At.Add(time.Duration(m.Phases[n-1].TookS * 1e9))
		}
		m.Phases = append(m.Phases, api.PhaseTime{Phase: p.name, At: at, TookS: p.took})
		m.FinishedAt = at
	}
	return m
}

func moveText(t testing.TB, m api.Migration) string {
	t.Helper()
	var b strings.Builder
	if err := RenderMove(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestMoveGolden(t *testing.T) { golden(t, moveText(t, sampleMove()), "testdata/move.golden.html") }

// What a move was is in the page's text, whatever its end.
func TestMovePageSays(t *testing.T) {
	back := sampleMove()
	back.Phase, back.Error, back.Warnings = api.PhaseRolledBack, "the destination's disk is full", []string{"clocks differ"}
	blocks := sampleMove()
	blocks.Measured.Blocks = []migration.Encoded{{Kind: "zero", Pages: 1000, Stream: 4_096_000}, {Kind: "literal", Pages: 100, Stream: 409_600, Wire: 180_000}, {Kind: "heads", Wire: 260}}
	going := api.Migration{ID: "m-2", VM: "web", From: "us-1", To: "eu-1", Phase: "PreCopy", Progress: 0.42, CreatedAt: noon}
	for name, c := range map[string]struct {
		m    api.Migration
		says []string
	}{
		"ended":  {sampleMove(), []string{"web went from us-1 to asia-1 in 10.0 s and stood still for 404 ms", "literal", "as another page of the VM", "54 %", "rounds are getting shorter", "87.9 MB/s", "encoded by a core", "31.7 MB", "mirror", "2.40 ms"}},
		"disks":  {blocks, []string{"4 %", "streams crossed", "90.9 MB/s"}},
		"undone": {back, []string{"web stays at us-1", "the destination's disk is full", "clocks differ"}},
		"going":  {going, []string{"web is on its way from us-1 to eu-1", "42 %", "No pass has ended", "It was sent as the hypervisor makes it, or nothing has been sent"}},
		"held":   {api.Migration{VM: "web", To: "eu-1", Phase: api.PhaseHeld}, []string{"web is safe"}},
		"none":   {api.Migration{}, []string{"It has not begun"}},
	} {
		page := moveText(t, c.m)
		text := strings.ReplaceAll(inert(t, page), "\u00a0", " ")
		if n := sketches(t, page); name == "ended" && n < 3 {
			t.Errorf("%d pictures", n)
		}
		for _, say := range c.says {
			if !strings.Contains(text, say) {
				t.Errorf("%s: it does not say %q", name, say)
			}
		}
	}
}

// FuzzMove puts a text wherever a user, a host or a guest can put one, and numbers that none may be.
func FuzzMove(f *testing.F) {
	f.Add("web", uint64(1), 0.5)
	f.Add("<script>alert(1)</script>", ^uint64(0), -1e300)
	f.Fuzz(func(t *testing.T, s string, n uint64, x float64) {
		m := sampleMove()
		m.VM, m.From, m.To, m.Phase, m.Error, m.Warnings = heliotrope.VMID(s), heliotrope.HostID(s), heliotrope.HostID(s), s, s, []string{s}
		m.Phases[3].Phase, m.Phases[4].TookS = s, x
		m.Measured.Memory[1].Wire, m.Measured.Memory[2].Pages, m.Measured.CodecMs, m.Measured.PauseMs = n, n, x, x
		m.Measured.Passes[0].Dirty, m.Measured.Passes[1].Sent, m.Measured.Passes[1].Why = n, n, s
		page := moveText(t, m)
		inert(t, page)
		sketches(t, page)
	})
}
