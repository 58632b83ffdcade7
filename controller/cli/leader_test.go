package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies"
)

// sunny is a controller of the topology sun, at one site of which nine in ten ask; where that
// is not steady, only on average.
func sunny(t *testing.T, site string, steady bool) *fake {
	t.Helper()
	text, err := topologies.Example("sun")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{rev: 7}
	if f.topology, err = topologies.Parse(text, "sun.yaml", topologies.Options{}); err != nil {
		t.Fatal(err)
	}
	f.counted = func(q api.TrafficQuery) traffic.Matrix {
		m := traffic.Matrix{From: noon.Add(-q.Window), To: noon}
		if !q.End.IsZero() && !steady {
			return m
		}
		for _, other := range []string{"tokyo", "london", "virginia"} {
			rate := 1e4 // bytes a second
			if other == site {
				rate = 18e4
			}
			kv, staff := traffic.VM(heliotrope.VMID("kv-"+other)), traffic.VM(heliotrope.VMID("staff-"+other))
			m.Cells = append(m.Cells, traffic.Cell{Src: kv, Dst: staff, Bytes: rate * q.Window.Seconds()},
				traffic.Cell{Src: kv, Dst: traffic.VM("kv-virginia"), Bytes: 1e9})
		}
		return m
	}
	return f
}

// program keeps who leads in a file.
func program(t *testing.T, leads string) (path string, now func() string) {
	t.Helper()
	dir := t.TempDir()
	file, path := filepath.Join(dir, "leads"), filepath.Join(dir, "program")
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in which) cat %[1]s ;; move) echo $2 >%[1]s ;; esac\n", file)
	for name, text := range map[string]string{file: leads, path: script} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return path, func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
}

func TestLeaderFollow(t *testing.T) {
	const replicas = "kv-tokyo,kv-london,kv-virginia"
	for _, x := range []struct {
		name, site  string
		steady      bool
		more        []string
		leads, says string
	}{
		{"goes to those who ask", "tokyo", true, nil, "kv-tokyo", "kv-london leads, and now kv-tokyo"},
		{"stays with those who ask", "london", true, nil, "kv-london", "kv-london leads: no beneficial move"},
		{"stays where only an average speaks against it", "tokyo", false, nil, "kv-london", "not in each tenth of the window"},
		{"says", "tokyo", true, []string{"--dry-run"}, "kv-london", "kv-london leads, and kv-tokyo ought to"},
		{"in JSON", "tokyo", true, []string{"-o", "json"}, "kv-tokyo", `"to":"kv-tokyo","done":true`},
	} {
		t.Run(x.name, func(t *testing.T) {
			root := shortDir(t)
			serve(t, sunny(t, x.site, x.steady), root)
			path, now := program(t, "kv-london\n")
			r := execute(t.Context(), root, "", append([]string{"leader", "follow", "--replicas", replicas, "--program", path, "--window", "10s", "--interval", "1ms",
				"--count", "2", "--max-moves-per-day", "1"}, x.more...)...)
			if now() != x.leads || !strings.Contains(r.out, x.says) {
				t.Errorf("%s leads, %+v", now(), r)
			}
		})
	}
}

func TestLeaderFollowRefused(t *testing.T) {
	root := shortDir(t)
	serve(t, sunny(t, "tokyo", true), root)
	path, now := program(t, "kv-london\n")
	for _, x := range []struct {
		says string
		args []string
	}{
		{"replicas", []string{"--program", path}},
		{"fewer than three", []string{"--program", path, "--replicas", "kv-tokyo,kv-london"}},
		{"use 10s to 24h", []string{"--program", path, "--replicas", "kv-tokyo,kv-london,kv-virginia", "--window", "1s"}},
		{"there are balanced", []string{"--program", path, "--replicas", "kv-tokyo,kv-london,kv-virginia", "--policy", "dearest"}},
		{"kv-mars is no VM or stub", []string{"--program", path, "--replicas", "kv-mars,kv-london,kv-virginia"}},
		{"none of the replicas", []string{"--program", path, "--replicas", "kv-tokyo,staff-london,kv-virginia"}},
		{"no such file", []string{"--program", path + "x", "--replicas", "kv-tokyo,kv-london,kv-virginia"}},
	} {
		r := execute(t.Context(), root, "", append([]string{"leader", "follow", "--count", "1"}, x.args...)...)
		if r.code == 0 || !strings.Contains(r.err, x.says) || now() != "kv-london" {
			t.Errorf("%v: %+v, want %q", x.args, r, x.says)
		}
	}
}
