package pattern

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"heliotrope/scheduler/traffic"
)

// A tier is read off two things: the place that its members have in the pattern, where
// places differ (a root and leaves, the stages of a pipeline), and else the services that
// they answer and use, to whomever, the outside included. Port numbers mean nothing here;
// which side answers does.

// telling is the share of a member's bytes, and of the group's, that a service must carry to
// be part of what they do: a probe or a login is not.
const telling = 0.03

// part is what one member does: bytes per second by service.
type part struct {
	serves, uses map[traffic.Service]float64
	bytes        float64
}

// tiers says what the members of a group do.
func tiers(g Graph, out *Group) []Tier {
	parts := make(map[int]*part, len(out.Members))
	for _, m := range out.Members {
		parts[m] = &part{serves: map[traffic.Service]float64{}, uses: map[traffic.Service]float64{}}
	}
	for _, e := range g.Edges {
		parts[e.From].add(e, e.Reply)
		parts[e.To].add(e, !e.Reply)
	}
	whole := part{serves: map[traffic.Service]float64{}, bytes: out.Bytes + out.Outside}
	for _, m := range out.Members {
		parts[m].each(func(s traffic.Service, b float64, _ map[traffic.Service]float64) { whole.serves[s] += b })
	}
	for _, p := range parts {
		p.forget(&whole)
	}
	peers := shared(parts)
	var all []Tier
	at := map[string]int{}
	for k, m := range out.Members {
		serves, uses := sorted(parts[m].serves), sorted(parts[m].uses)
		name := place(out, k)
		if name == "" {
			name = role(serves, uses, peers)
		}
		i, ok := at[name]
		if !ok {
			i = len(all)
			at[name] = i
			all = append(all, Tier{Name: name})
		}
		t := &all[i]
		t.Members = append(t.Members, g.Ends[m])
		t.Serves, t.Uses = union(t.Serves, serves), union(t.Uses, uses)
		t.Confidence += parts[m].explained()
	}
	all = alike(all, len(out.Members))
	for i := range all {
		t := &all[i]
		t.Confidence *= out.Confidence / float64(len(t.Members))
		if t.Name = strings.ReplaceAll(t.Name, "*", map[bool]string{true: "s"}[len(t.Members) > 1]); t.Name == "" {
			t.Name = "peers"
		}
	}
	return all
}

// alike makes one tier of many that differ by nothing but a port of each one's own: every
// member answers some and asks others, as in a mesh.
func alike(all []Tier, members int) []Tier {
	one := func(t Tier) bool { return len(t.Members) == 1 && len(t.Serves) > 0 && len(t.Uses) > 0 }
	if len(all) < 3 || len(all) != members || slices.ContainsFunc(all, func(t Tier) bool { return !one(t) }) {
		return all
	}
	mesh := Tier{Name: "peers"}
	for _, t := range all {
		mesh.Members = append(mesh.Members, t.Members...)
		mesh.Serves, mesh.Uses = union(mesh.Serves, t.Serves), union(mesh.Uses, t.Uses)
		mesh.Confidence += t.Confidence
	}
	return []Tier{mesh}
}

func (p *part) add(e Edge, answers bool) {
	if p == nil {
		return // no member
	}
	p.bytes += e.Bytes
	if known := e.Service.Port != 0; known && answers {
		p.serves[e.Service] += e.Bytes
	} else if known {
		p.uses[e.Service] += e.Bytes
	}
}

func (p *part) each(do func(traffic.Service, float64, map[traffic.Service]float64)) {
	for _, m := range []map[traffic.Service]float64{p.serves, p.uses} {
		for _, s := range sorted(m) { // sums do not depend on the map's order
			do(s, m[s], m)
		}
	}
}

// forget leaves the services that tell.
func (p *part) forget(whole *part) {
	all := p.bytes
	p.each(func(s traffic.Service, b float64, m map[traffic.Service]float64) {
		stranger := whole.serves[s] < telling*whole.bytes
		if stranger {
			p.bytes -= b
		}
		if stranger || b < telling*all {
			delete(m, s)
		}
	})
}

// explained is the share of the member's bytes, strangers' aside, that its services are.
func (p *part) explained() float64 {
	sum := 0.0
	p.each(func(_ traffic.Service, b float64, _ map[traffic.Service]float64) { sum += b })
	if sum == 0 {
		return 1 // its place says what it does
	}
	return min(sum/p.bytes, 1)
}

// shared are services that peers answer each other: who answers also asks. That needs two
// members that do both, or a member would be a peer of nobody.
func shared(parts map[int]*part) map[traffic.Service]bool {
	does := map[traffic.Service]int{}
	for _, p := range parts {
		for s := range p.serves {
			if _, ok := p.uses[s]; ok {
				does[s]++
			}
		}
	}
	peers := map[traffic.Service]bool{}
	for s, n := range does {
		peers[s] = n > 1 || len(parts) <= 3
	}
	return peers
}

// place names the place of the k-th member in the pattern; "": it is one like all others.
func place(out *Group, k int) string {
	n := len(out.Members)
	switch out.Kind {
	case MasterWorker:
		return map[bool]string{true: "master", false: "worker*"}[k == 0]
	case Pipeline:
		return fmt.Sprintf("stage %d of %d", k+1, n)
	case Tree, Broadcast:
		switch {
		case k == 0:
			return "root"
		case out.childless(k):
			return "leaves"
		}
		return "inner nodes"
	case Shuffle:
		return map[bool]string{true: "sender*", false: "receiver*"}[k < out.Shape[0]]
	}
	return ""
}

// childless says whether the k-th member of a tree is a leaf.
func (out *Group) childless(k int) bool {
	n := len(out.Members)
	if out.Kind == Tree {
		return out.Shape[0]*k+1 >= n
	}
	return k+1<<bitLen(k) >= n // binomial: the first child of k is k + 2^bits(k)
}

// role names what a member does by its services; * is where a plural goes.
func role(serves, uses []traffic.Service, peers map[traffic.Service]bool) string {
	var answers, asks, both []string
	for _, s := range serves {
		if peers[s] {
			both = append(both, s.String())
		} else {
			answers = append(answers, s.String())
		}
	}
	for _, s := range uses {
		switch {
		case !peers[s]:
			asks = append(asks, s.String())
		case !slices.Contains(both, s.String()):
			both = append(both, s.String())
		}
	}
	var said []string
	if len(answers) > 0 {
		said = append(said, strings.Join(answers, " and ")+" server*")
	}
	if len(both) > 0 {
		said = append(said, "peers over "+strings.Join(both, " and "))
	}
	if len(asks) > 0 {
		who := "client* of "
		if len(said) == 0 {
			who = "clients of "
		}
		said = append(said, who+strings.Join(asks, " and "))
	}
	return strings.Join(said, ", ")
}

// sorted are a map's services, by protocol and port.
func sorted(m map[traffic.Service]float64) []traffic.Service {
	return union(nil, slices.Collect(maps.Keys(m)))
}

func union(a, b []traffic.Service) []traffic.Service {
	a = append(a, b...)
	slices.SortFunc(a, func(x, y traffic.Service) int {
		return cmp.Or(cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Port, y.Port))
	})
	return slices.Compact(a)
}
