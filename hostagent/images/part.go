package images

import (
	"fmt"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/spread"
)

// part is what the controller lends a version of links that images share. It is lent for a short time: who hears no
// more of the controller waits, and so does the next server of disks, which is why no disk keeps it. So
// the controller knows what is taken at most, whoever is cut off.
type part struct {
	rate  heliotrope.BitRate
	until time.Time
	held  bool        // other hosts of the site wait too
	lapse *time.Timer // at until
}

// now is what may be taken.
func (p *part) now() heliotrope.BitRate {
	if p.rate == 0 || !time.Now().Before(p.until) {
		return 0
	}
	return p.rate
}

// forget ends the part. The lock is held.
func (p *part) forget() {
	if p.lapse != nil {
		p.lapse.Stop()
	}
	*p = part{}
}

// setRate has a version come as fast as its order and its part let it. The lock is held.
func (on *opened) setRate() {
	p := on.pull.Load()
	rate := p.Rate
	if p.Shared {
		if own := on.part.now(); rate == 0 || own < rate {
			rate = own
		}
		if rate < 8 {
			on.SetRate(spread.Nothing)
			return
		}
	}
	on.SetRate(int64(rate / 8))
}

// take gives a version its part, and says what there is of it. What is not open has all that is to come, or came to
// be dropped. The lock is held.
func (s *server) take(ref string, given agentapi.ImagePart) (agentapi.ImageCache, error) {
	for root, c := range s.dropped {
		if c.Image == ref && s.sites[root] == nil {
			return c, nil
		}
	}
	for root, on := range s.sites {
		was := on.pull.Load()
		if was == nil || on.Version.Ref() != ref {
			continue
		}
		if was.Shared != given.Shared {
			p := *was
			p.Shared = given.Shared
			if err := site.SetPulled(s.c.Dir, root, &p); err != nil {
				return agentapi.ImageCache{}, fmt.Errorf("share the links of %s: %w", ref, err)
			}
			on.pull.Store(&p)
		}
		on.part.forget()
		if given.Shared {
			on.part = part{rate: given.Rate, until: time.Now().Add(time.Duration(given.For)), held: given.Held}
		}
		if on.part.rate > 0 {
			on.part.lapse = time.AfterFunc(time.Duration(given.For), func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				on.setRate()
			})
		}
		on.Hold(on.part.held)
		on.setRate()
		c, _ := on.seen(), s.budget.room()
		s.budget.mu.Lock()
		defer s.budget.mu.Unlock()
		s.budget.mark(&c)
		return c, nil
	}
	return agentapi.ImageCache{Image: ref}, nil
}
