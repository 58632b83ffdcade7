//go:build lab

package endpoints

import (
	"os"
	"testing"
	"time"

	"heliotrope/scheduler/traffic"
)

// Every application starts, works between the VMs that it says, and leaves nothing.
func TestApps(t *testing.T) {
	places := bridge(t, names(5))
	for _, name := range Apps() {
		t.Run(name, func(t *testing.T) {
			before := sentBy(t, places)
			began := time.Now()
			app, err := StartApp(t.Context(), name, places)
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			started := time.Since(began)
			if err := app.Load(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
			if err := app.Close(); err != nil {
				t.Error(err)
			}
			t.Logf("ready after %v, all took %v", started.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			told := map[traffic.End]bool{}
			for _, tier := range app.Tiers {
				for _, e := range tier.Members {
					told[e] = true
				}
			}
			for vm, after := range sentBy(t, places) {
				if after-before[vm] < 20 || !told[vm] {
					t.Errorf("%s sent %d packets; is it in a tier: %v", vm, after-before[vm], told[vm])
				}
			}
			for _, p := range places {
				if _, err := os.Stat(appDir + string(p.VM)); err == nil {
					t.Errorf("%s has left its directory", p.VM)
				}
			}
		})
	}
	if _, err := StartApp(t.Context(), "oracle", places); err == nil {
		t.Error("an application that there is none of was started")
	}
	if _, err := StartApp(t.Context(), "etcd", places[:2]); err == nil {
		t.Error("etcd was started on two VMs")
	}
}

// sentBy are the packets that each has sent so far.
func sentBy(t *testing.T, places []Place) map[traffic.End]uint64 {
	t.Helper()
	all := map[traffic.End]uint64{}
	for _, p := range places {
		text, err := os.ReadFile(procNet(p.PID))
		if err != nil {
			t.Fatal(err)
		}
		d, err := parseDevices(string(text))
		if err != nil {
			t.Fatal(err)
		}
		all[traffic.VM(p.VM)] = d.TxPackets
	}
	return all
}
