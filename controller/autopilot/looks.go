package autopilot

import (
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// looksKept is a day of a look a minute. The store keeps none of them: a new leader has
// those of the plans that it found there, and adds its own.
const looksKept = 1440

// lookOf is what there is to see in a plan of what things cost now.
func lookOf(at time.Time, p scheduler.Plan) api.Look {
	l := api.Look{At: at.UTC(), Cost: p.Before}
	if p.Map != nil {
		l.Means = p.Map.Before
	}
	return l
}

// remember adds a look, and forgets the oldest.
func remember(looks []api.Look, l api.Look) []api.Look {
	looks = append(looks, l)
	return slices.Delete(looks, 0, max(0, len(looks)-looksKept))
}

// looksOf are those of a pool's own plans that are kept; mu is held.
func (a *Autopilot) looksOf(id heliotrope.PoolID) (looks []api.Look) {
	for _, p := range a.plans {
		if p.Pool == id && p.By == "autopilot" {
			looks = append(looks, lookOf(p.CreatedAt, p.Plan))
		}
	}
	slices.SortFunc(looks, func(a, b api.Look) int { return a.At.Compare(b.At) })
	return looks
}
