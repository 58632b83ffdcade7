package images

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

// lookAgain is how often the controller is asked how far an image has come.
const lookAgain = 2 * time.Second

type pushFlags struct {
	sites               []string
	wait, dry, inWindow bool
	rate, priority      string
}

func (p pushFlags) push(ctx context.Context, c *api.Client, out *output.Printer, ref string) error {
	r := api.PushRequest{DryRun: p.dry, InWindow: p.inWindow, Priority: p.priority}
	if p.rate != "" {
		var rate heliotrope.BitRate
		if err := rate.UnmarshalText([]byte(p.rate)); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
		r.RateBitsPerS = int64(rate)
	}
	if !slices.Contains(p.sites, "all") {
		for _, s := range p.sites {
			r.Sites = append(r.Sites, heliotrope.SiteID(s))
		}
	}
	places, err := c.PushImage(ctx, ref, r)
	if err != nil {
		return err
	}
	for bar := (siteBar{out: out}); p.wait && !p.dry && coming(places); {
		bar.update(places)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookAgain):
		}
		all, err := c.ImagePlaces(ctx, ref)
		if err != nil {
			return err
		}
		places = slices.DeleteFunc(all, func(a api.ImagePlace) bool {
			return !slices.ContainsFunc(places, func(b api.ImagePlace) bool { return a.Host == b.Host })
		})
	}
	if p.dry {
		return showForecast(out, places)
	}
	if err := showPlaces(out, places); err != nil {
		return err
	}
	states := map[string]int{}
	for _, h := range places {
		states[h.State]++
	}
	switch failed, full := states[api.PlaceFailed], states[api.PlaceFull]; {
	case failed > 0:
		return fmt.Errorf("%s did not take the order", output.Plural(failed, "host"))
	case full > 0:
		return fmt.Errorf("%s cannot keep it: give their agents more --image-cache, or remove VMs of other images there", output.Plural(full, "host"))
	}
	return nil
}

func coming(places []api.ImagePlace) bool {
	return slices.ContainsFunc(places, func(p api.ImagePlace) bool {
		return p.State == api.PlaceComing || p.State == api.PlaceWaits || p.State == api.PlaceAbsent
	})
}

func showPlaces(out *output.Printer, places []api.ImagePlace) error {
	return out.Show(places, func(t *output.Table) {
		t.Head("SITE", "HOST", "STATE", "HERE", "OF", "DISKS", "NOTE")
		for _, p := range places {
			t.Row(p.Site, p.Host, p.State, output.Bytes(uint64(p.HereBytes)), output.Bytes(uint64(p.ContentBytes)), p.Disks, p.Note)
		}
	})
}

// showForecast shows what would come.
func showForecast(out *output.Printer, places []api.ImagePlace) error {
	return out.Show(places, func(t *output.Table) {
		var crosses int64
		var usd float64
		t.Head("SITE", "HOST", "STATE", "MISSING", "COMES", "TAKES", "COSTS", "NOTE")
		for _, p := range places {
			t.Row(p.Site, p.Host, p.State, output.Bytes(uint64(p.MissingBytes)), output.Bytes(uint64(p.WireBytes)), output.Seconds(p.ETAS), dollars(p.CostUSD), p.Note)
			crosses, usd = crosses+p.WireBytes, usd+p.CostUSD
		}
		t.Line("")
		if crosses == 0 {
			t.Line("nothing would come")
			return
		}
		t.Line("in all %s would come from the store, for %.4f USD", output.Bytes(uint64(crosses)), usd)
	})
}

func dollars(usd float64) string {
	if usd == 0 {
		return ""
	}
	return fmt.Sprintf("%.4f USD", usd)
}

// siteBar tells how far an image has come, a line for each site.
type siteBar struct {
	out   *output.Printer
	said  time.Time
	lines int
}

func (b *siteBar) update(places []api.ImagePlace) {
	every := 10 * time.Second
	if b.out.Terminal {
		every = 0
	}
	if time.Since(b.said) < every {
		return
	}
	b.said = time.Now()
	type sum struct {
		hosts, whole, here, all, full, coming int64
		waits                                 string // why a host does
	}
	sites, order := map[heliotrope.SiteID]*sum{}, []heliotrope.SiteID{}
	for _, p := range places {
		s := sites[p.Site]
		if s == nil {
			s = &sum{}
			sites[p.Site], order = s, append(order, p.Site)
		}
		s.hosts++
		s.here += p.HereBytes
		s.all += p.ContentBytes
		switch p.State {
		case api.PlaceHere:
			s.whole++
		case api.PlaceFull:
			s.full++
		case api.PlaceComing:
			s.coming++
		case api.PlaceWaits:
			s.waits = cmp.Or(s.waits, "; waits: "+p.Note)
		}
	}
	if b.out.Terminal && b.lines > 0 {
		fmt.Fprintf(b.out.Err, "\033[%dA", b.lines)
	}
	for _, site := range order {
		s := sites[site]
		share := float64(s.here) / float64(max(s.all, 1))
		line := fmt.Sprintf("%-16s [%-30s] %4s  %d of %s", site, strings.Repeat("=", int(30*share)), output.Percent(share), s.whole, output.Plural(int(s.hosts), "host"))
		if s.full > 0 {
			line += fmt.Sprintf(", %d without room", s.full)
		}
		if s.coming == 0 {
			line += s.waits
		}
		if b.out.Terminal {
			line = "\033[K" + line
		}
		fmt.Fprintln(b.out.Err, line)
	}
	b.lines = len(order)
}
