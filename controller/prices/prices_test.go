package prices

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
)

func sites(t *heliotrope.Topology) string {
	var b strings.Builder
	for _, id := range []heliotrope.SiteID{"eu", "us"} {
		s := t.Sites[id]
		b.WriteString(strings.TrimSpace(string(id)) + " " + Price{USDPerVCPUHour: &s.PricePerVCPUHour, USDPerGiBHour: &s.PricePerGiBHour}.String() + "\n")
	}
	return b.String()
}

// A feed's prices stand in place of the topology's, what it says wrong changes nothing, and
// one that is silent for a day is forgotten.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text, fails := "", error(nil)
		var told []string
		f := &Feed{log: slog.New(slog.DiscardHandler), read: func(context.Context) ([]byte, error) { return []byte(text), fails },
			tell: func(id heliotrope.SiteID, what string) { told = append(told, string(id)+" "+what) }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- f.Run(ctx) }()
		base := heliotrope.Topology{Sites: map[heliotrope.SiteID]heliotrope.Site{"us": {PricePerVCPUHour: 3, PricePerGiBHour: 0.3}, "eu": {PricePerVCPUHour: 4, PricePerGiBHour: 0.4}}}
		want := func(what, us string) {
			t.Helper()
			time.Sleep(2 * time.Minute)
			top := base
			f.Apply(&top)
			if got := sites(&top); got != "eu USD 4 for a vCPU-hour, USD 0.4 for a GiB-hour\nus "+us+"\n" {
				t.Errorf("%s:\n%s", what, got)
			}
		}
		const asWritten = "USD 3 for a vCPU-hour, USD 0.3 for a GiB-hour"
		want("before", asWritten)
		text = `{"sites": {"us": {"usd_per_vcpu_hour": 1}, "mars": {"usd_per_gib_hour": 2}}}`
		const cheaper = "USD 1 for a vCPU-hour, USD 0.3 for a GiB-hour"
		want("cheaper", cheaper)
		for _, text = range []string{`{"sites": {"us": {"usd_per_vcpu_hour": -1}}}`, `{"sites": {"us": {"usd_per_vcpu": 9}}}`, `{"sites": {"us": {"grams_co2_per_vcpu_hour": -1}}}`, `{"sites": `, `{} {}`} {
			want(text, cheaper)
		}
		fails = errors.New("away")
		want("away", cheaper)
		time.Sleep(25 * time.Hour)
		want("away for a day", asWritten)
		fails = nil
		text = `{"sites": {"us": {"grams_co2_per_vcpu_hour": 18, "interruptions_per_hour": 0.002}}}`
		want("what is no price", asWritten)
		top := base
		if f.Apply(&top); top.Sites["us"].GramsCO2PerVCPUHour != 18 || top.Sites["us"].InterruptionsPerHour != 0.002 || top.Sites["eu"].GramsCO2PerVCPUHour != 0 {
			t.Errorf("%+v", top.Sites)
		}
		text = ""
		want("nothing", asWritten)
		cancel()
		<-ended
		if !slices.Equal(told, []string{"mars costs as the topology says for a vCPU-hour, USD 2 for a GiB-hour", "us costs USD 1 for a vCPU-hour, as the topology says for a GiB-hour",
			"us costs as the topology says for a vCPU-hour, as the topology says for a GiB-hour, emits 18 g of CO₂ for a vCPU-hour, interrupts a VM 0.002 times an hour"}) {
			t.Errorf("told %q", told)
		}
		if base.Sites["us"].PricePerVCPUHour != 3 {
			t.Error("the topology itself was changed")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"sites": {"us": {"usd_per_vcpu_hour": 0.031, "usd_per_gib_hour": 0.0042}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parse(text)
		if err != nil && len(all) > 0 {
			t.Error("half of it was taken")
		}
		for _, p := range all {
			if p.USDPerVCPUHour != nil && !(*p.USDPerVCPUHour >= 0) {
				t.Errorf("%v", *p.USDPerVCPUHour)
			}
		}
	})
}
