package topologies

import (
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

const (
	minWindow   = heliotrope.Duration(10 * time.Second) // less has too few packets to go by
	maxWindow   = heliotrope.Duration(24 * time.Hour)   // what history keeps by default
	maxCoolDown = heliotrope.Duration(30 * 24 * time.Hour)
	maxMoves    = 1_000_000
	maxPause    = heliotrope.Duration(time.Hour)
	maxForecast = heliotrope.Duration(24 * time.Hour)

	minAmortisation = 0.01 // hours: what a move costs is divided by it
)

var (
	autopilots = []string{heliotrope.AutopilotOff, heliotrope.AutopilotAdvise, heliotrope.AutopilotConfirm, heliotrope.AutopilotAuto}
	scopes     = []string{heliotrope.AtHost, heliotrope.AtSite}
)

func (c *checker) policies() {
	builtin := scheduler.Presets()
	for id, p := range sorted(c.t.Policies) {
		at := (*path)(nil).key("policies").key(string(id))
		c.name(at, string(id))
		if slices.Contains(builtin, string(id)) {
			c.say(at, "give it another name, and this one as its base", "is the name of one that is there already")
		}
		c.word(at.key("base"), string(p.Base), "policies that others can be made of", builtin)
		c.word(at.key("hosts"), p.Hosts, "ways", []string{heliotrope.HostsSpread, heliotrope.HostsFill})
		for weight, x := range sorted(p.Weights) {
			c.weight(at.key("weights").key(string(weight)), weight, x)
		}
	}
}

func (c *checker) weight(at *path, id heliotrope.WeightID, x float64) {
	known := survey.Weights()
	if !slices.Contains(known, id) {
		names := make([]string, len(known))
		for i, k := range known {
			names[i] = string(k)
		}
		c.say(at, didYouMean(string(id), "weights", names), "is no weight")
		return
	}
	low := 0.0
	if id == "amortisation_hours" {
		low = minAmortisation
	}
	number(c, at, x, low, 1e6)
}

func (c *checker) pools() {
	owner := map[heliotrope.VMID]*path{}
	var rest *path
	for id, p := range sorted(c.t.Pools) {
		at := (*path)(nil).key("pools").key(string(id))
		c.name(at, string(id))
		if len(p.VMs) == 0 && rest != nil {
			c.say(at, "give all pools but one their vms", "has no vms, and so takes those in no pool, as %s does", rest)
		} else if len(p.VMs) == 0 {
			rest = at
		}
		for i, vm := range p.VMs {
			at := at.key("vms").at(i)
			if before := owner[vm]; before != nil {
				c.say(at, "a VM is in one pool", "%s is already %s", vm, before)
			} else if refer(c, at, vm, "vms", c.t.VMs) {
				owner[vm] = at
			}
		}
		c.word(at.key("autopilot"), p.Autopilot, "autopilots", autopilots)
		c.word(at.key("policy"), string(p.Policy), "policies", survey.Policies(c.t))
		if p.Window != 0 {
			number(c, at.key("window"), p.Window, minWindow, maxWindow)
		}
		number(c, at.key("interval"), p.Interval, 0, maxWindow)
		number(c, at.key("min_gain_usd_per_hour"), p.MinGain, 0, 1e6)
		number(c, at.key("budget_usd_per_hour"), p.Budget, 0, 1e6)
		number(c, at.key("move_budget_usd_per_day"), p.MoveUSD, 0, 1e6)
		number(c, at.key("max_pause"), p.MaxPause, 0, maxPause)
		number(c, at.key("cool_down"), p.CoolDownPerVM, 0, maxCoolDown)
		number(c, at.key("max_moves_per_hour"), p.MaxMovesPerHour, 0, maxMoves)
		number(c, at.key("max_moves_per_day"), p.MaxMovesPerDay, 0, maxMoves)
		number(c, at.key("forecast"), p.Forecast, 0, maxForecast)
		number(c, at.key("forecast_loss_usd_per_day"), p.ForecastLoss, 0, 1e6)
		if (p.Forecast != 0) != (p.ForecastLoss != 0) {
			c.say(at, "forecast and forecast_loss_usd_per_day go together", "says only one of how far ahead to plan, and what it may cost to be wrong")
		}
	}
}

// word checks one of a list of words, which may be left out.
func (c *checker) word(at *path, word, plural string, known []string) {
	if word != "" && !slices.Contains(known, word) {
		c.say(at, didYouMean(word, plural, known), "%s is not known", quote(word))
	}
}

func (c *checker) rules() {
	for id, r := range sorted(c.t.Rules) {
		at := (*path)(nil).key("rules").key(string(id))
		c.name(at, string(id))
		var kinds []string
		for _, k := range []struct {
			name  string
			given bool
		}{{"together", r.Together != ""}, {"apart", r.Apart != ""}, {"max_rtt", r.MaxRTT != 0}, {"sites", len(r.Sites) > 0}, {"not_sites", len(r.NotSites) > 0}} {
			if k.given {
				kinds = append(kinds, k.name)
			}
		}
		const which = "together, apart, max_rtt, sites or not_sites"
		switch {
		case len(kinds) == 0:
			c.say(at, "give it "+which, "asks for nothing")
		case len(kinds) > 1:
			c.say(at, "a rule has one of "+which+": make it several", "has %s", strings.Join(kinds, " and "))
		}
		c.word(at.key("together"), r.Together, "scopes", scopes)
		c.word(at.key("apart"), r.Apart, "scopes", scopes)
		number(c, at.key("max_rtt"), r.MaxRTT, 0, 2*maxDelay)
		if least := 1 + min(1, len(r.Together)+len(r.Apart)); len(r.VMs) < least {
			c.say(at.key("vms"), "", "has %d VMs, which is too few for this rule", len(r.VMs))
		}
		if (r.MaxRTT != 0) != (len(r.To) > 0) {
			c.say(at, "max_rtt and to go together", "says only one of how far, and to what")
		}
		c.each(at.key("vms"), r.VMs)
		c.each(at.key("to"), r.To)
		for i, s := range r.Sites {
			refer(c, at.key("sites").at(i), s, "sites", c.t.Sites)
		}
		for i, s := range r.NotSites {
			refer(c, at.key("not_sites").at(i), s, "sites", c.t.Sites)
		}
	}
}

// each checks a list of VMs that names each once.
func (c *checker) each(at *path, vms []heliotrope.VMID) {
	for i, vm := range vms {
		if refer(c, at.at(i), vm, "vms", c.t.VMs) && slices.Contains(vms[:i], vm) {
			c.say(at.at(i), "", "%s stands here twice", vm)
		}
	}
}
